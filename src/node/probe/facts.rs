//! Facts about the host, gathered without judgment. A fact that cannot be read is empty or zero, not an error.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kvm_ioctls::{Cap, Kvm};
use rustix::fs::Access;
use rustix::io::Errno;

use super::parse::{self, Cpu, HugePages};
use crate::home::NETWORKS;
use crate::router::{KilledRouter, killed};

pub const KVM_DEVICE: &str = "/dev/kvm";

#[derive(Clone, Debug)]
pub struct Facts {
    pub kvm: KvmFacts,
    pub environment: HostEnvironment,
    /// CPUs available to this process.
    pub cpus: u32,
    /// Memory available without swapping, in MiB.
    pub memory_available_mib: u64,
    pub huge_pages: Option<HugePages>,
    /// `None` if no environment variable determines the directory.
    pub home: Option<HomeFacts>,
    pub helpers: Vec<(Helper, bool)>,
    pub vpc: VpcFacts,
    pub killed_routers: Vec<KilledRouter>,
    /// Result of binding a port below 1024.
    pub low_ports: Result<(), Errno>,
    /// Landlock version; 0 if the kernel has none.
    pub landlock: u32,
}

impl Facts {
    pub fn read(data_directory: Option<PathBuf>) -> Self {
        Facts {
            kvm: kvm(KvmDepth::CreateVm),
            environment: HostEnvironment::read(),
            cpus: usable_cpus(),
            memory_available_mib: memory_available_mib(),
            huge_pages: parse::huge_pages(&text("/sys/kernel/mm/transparent_hugepage/enabled")),
            killed_routers: data_directory.as_deref().map(killed_routers).unwrap_or_default(),
            home: data_directory.map(HomeFacts::read),
            helpers: HELPERS.map(|helper| (helper, is_installed(helper.program))).to_vec(),
            vpc: VpcFacts::read(),
            low_ports: low_ports(),
            landlock: landlock_version(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct KvmFacts {
    pub node: Option<DeviceNode>,
    pub opened: Result<(), Errno>,
    pub interface: Option<KvmInterface>,
    /// `None` if creating a VM was not tried.
    pub created_vm: Option<Result<(), Errno>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    pub mode: u32,
    pub group: u32,
    pub group_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmInterface {
    pub api_version: i32,
    /// Missing required capabilities.
    pub missing: Vec<&'static str>,
    pub max_vcpus: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmDepth {
    Open,
    CreateVm,
}

/// Capabilities that the VMM requires, with KVM's names.
pub const REQUIRED_CAPABILITIES: [(Cap, &str); 16] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

pub fn kvm_node() -> Option<DeviceNode> {
    let metadata = fs::metadata(KVM_DEVICE).ok()?;
    let group = metadata.gid();
    let groups = text("/etc/group");
    let group_name = parse::groups(&groups).find(|known| known.id == group);
    Some(DeviceNode {
        mode: metadata.mode() & 0o7777,
        group,
        group_name: group_name.map(|group| group.name.to_owned()),
    })
}

pub fn kvm(depth: KvmDepth) -> KvmFacts {
    let node = kvm_node();
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let opened = Err(errno(&error));
            return KvmFacts { node, opened, interface: None, created_vm: None };
        }
    };
    let interface = KvmInterface {
        api_version: kvm.get_api_version(),
        missing: REQUIRED_CAPABILITIES
            .into_iter()
            .filter(|(capability, _)| !kvm.check_extension(*capability))
            .map(|(_, name)| name)
            .collect(),
        max_vcpus: kvm.get_max_vcpus(),
    };
    let created_vm = match depth {
        KvmDepth::Open => None,
        KvmDepth::CreateVm => Some(kvm.create_vm().map(drop).map_err(|error| errno(&error))),
    };
    KvmFacts { node, opened: Ok(()), interface: Some(interface), created_vm }
}

fn errno(error: &kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

#[derive(Clone, Debug, Default)]
pub struct HostEnvironment {
    pub cpu: Cpu,
    pub in_container: bool,
    /// Loaded modules among [`KVM_MODULES`] and [`RIVAL_MODULES`].
    pub modules: Vec<&'static str>,
    pub user: User,
    pub has_kvm_group: bool,
}

pub const KVM_MODULES: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];
/// Modules of other hypervisors, which use the CPU's virtualization extensions exclusively.
pub const RIVAL_MODULES: [&str; 2] = ["vboxdrv", "vmmon"];

impl HostEnvironment {
    pub fn read() -> Self {
        let groups = text("/etc/group");
        let is_loaded = |module: &&str| Path::new("/sys/module").join(module).exists();
        HostEnvironment {
            cpu: parse::cpuinfo(&text("/proc/cpuinfo")),
            in_container: ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"]
                .iter()
                .any(|mark| Path::new(mark).exists()),
            modules: KVM_MODULES.into_iter().chain(RIVAL_MODULES).filter(is_loaded).collect(),
            user: User::read(&groups),
            has_kvm_group: parse::groups(&groups).any(|group| group.name == "kvm"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    /// The process's groups, set at login.
    pub groups: Vec<u32>,
    /// The user's groups in `/etc/group`, effective from the next login.
    pub listed_groups: Vec<u32>,
}

impl User {
    fn read(group_file: &str) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let name = parse::user_name(&text("/etc/passwd"), uid)
            .or_else(|| std::env::var("USER").ok())
            .unwrap_or_else(|| uid.to_string());
        let mut groups: Vec<u32> = rustix::process::getgroups()
            .map(|groups| groups.into_iter().map(|group| group.as_raw()).collect())
            .unwrap_or_default();
        groups.push(rustix::process::getegid().as_raw());
        let listed_groups =
            parse::groups(group_file).filter(|group| group.has_member(&name)).map(|group| group.id).collect();
        User { name, uid, groups, listed_groups }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeFacts {
    /// Path of the data directory, which may not exist yet.
    pub path: PathBuf,
    pub writable: Result<(), Errno>,
    pub free_mib: Option<u64>,
}

impl HomeFacts {
    fn read(path: PathBuf) -> Self {
        // A missing directory would be created in its nearest existing ancestor, so check that one's permissions.
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(&path);
        let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
        let writable = if existing.is_dir() {
            rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK)
        } else {
            Err(Errno::NOTDIR)
        };
        let free_mib =
            rustix::fs::statvfs(existing).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) / (1024 * 1024));
        HomeFacts { path, writable, free_mib }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helper {
    pub program: &'static str,
    pub purpose: &'static str,
    /// Debian package that contains the program.
    pub package: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct VpcFacts {
    /// Result of opening `/dev/net/tun`, which creates tap devices.
    pub tun: Result<(), Errno>,
    /// Kernel setting that forbids user namespaces for this user.
    pub forbidden_by: Option<NamespaceSetting>,
    /// True if the kernel lacks nftables' bridge family, whose rules prevent instances from spoofing addresses.
    pub lacks_bridge_rules: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceSetting {
    pub name: &'static str,
    pub allows: &'static str,
    /// False if programs with an AppArmor profile, such as passt, are exempt.
    pub for_all: bool,
}

impl NamespaceSetting {
    pub fn in_force() -> Option<NamespaceSetting> {
        // Name, forbidding value, allowing value, applies to root, applies to all programs.
        let settings = [
            ("user.max_user_namespaces", "0", "15000", true, true),
            ("kernel.unprivileged_userns_clone", "0", "1", false, true),
            ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", false, false),
        ];
        let is_root = rustix::process::geteuid().is_root();
        let forbids = |(name, value, _, for_root, _): &(&str, &str, &str, bool, bool)| {
            (*for_root || !is_root) && text(&format!("/proc/sys/{}", name.replace('.', "/"))).trim() == *value
        };
        let (name, _, allows, _, for_all) = settings.into_iter().find(forbids)?;
        Some(NamespaceSetting { name, allows, for_all })
    }

    pub fn fix(&self) -> String {
        format!("sudo sysctl {}={}", self.name, self.allows)
    }
}

/// Returns true if nftables refuses a bridge table in temporary namespaces. Returns false if that cannot be tried.
fn lacks_bridge_rules() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--", "nft", "add table bridge wisp"]).stdin(Stdio::null());
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    let refused = |output: Output| {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        !output.status.success() && ["not supported", "No such file"].iter().any(|reason| stderr.contains(reason))
    };
    is_installed("nft") && command.output().is_ok_and(refused)
}

/// Returns the Landlock version, or 0 if Landlock is missing or disabled (landlock_create_ruleset(2)).
fn landlock_version() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag, the call reads no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

impl VpcFacts {
    fn read() -> VpcFacts {
        const FLAGS: rustix::fs::OFlags = rustix::fs::OFlags::RDWR.union(rustix::fs::OFlags::CLOEXEC);
        let tun = rustix::fs::open("/dev/net/tun", FLAGS, rustix::fs::Mode::empty()).map(drop);
        VpcFacts { tun, forbidden_by: NamespaceSetting::in_force(), lacks_bridge_rules: lacks_bridge_rules() }
    }
}

fn killed_routers(data_directory: &Path) -> Vec<KilledRouter> {
    killed(&data_directory.join(NETWORKS))
}

/// Tries to bind port 22, as for an instance with a public address.
fn low_ports() -> Result<(), Errno> {
    let tried = TcpListener::bind((Ipv4Addr::new(127, 18, 255, 254), 22));
    tried.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Optional programs. Guests run without any of them.
pub const HELPERS: [Helper; 5] = [
    Helper {
        program: "qemu-img",
        purpose: "converting disk formats that `wisp image import` cannot read",
        package: "qemu-utils",
    },
    Helper { program: "mmdebstrap", purpose: "building Debian images (scripts/debian-image)", package: "mmdebstrap" },
    Helper { program: "passt", purpose: "outbound connectivity of guests", package: "passt" },
    Helper { program: "nft", purpose: "VPCs", package: "nftables" },
    Helper { program: "ssh", purpose: "`wisp ssh`", package: "openssh-client" },
];

/// Returns true if a program is installed, possibly only in root's path.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| rustix::fs::access(directory.join(program), Access::EXEC_OK).is_ok())
}

pub fn last_cache_bytes() -> Option<u64> {
    let size = |index: u32| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        parse::kib(&std::fs::read_to_string(path).ok()?)
    };
    (0..8).map_while(size).max()
}

pub fn usable_cpus() -> u32 {
    // Fails only if the host has more CPUs than a CpuSet has bits.
    rustix::thread::sched_getaffinity(None)
        .map_or_else(|_| std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32), |set| set.count())
}

/// Memory available without swapping, within the limit of a container's cgroup, in MiB.
pub fn memory_available_mib() -> u64 {
    let available = parse::meminfo_mib(&text("/proc/meminfo"), "MemAvailable").unwrap_or(0);
    let room = parse::cgroup_room_mib(
        &text("/sys/fs/cgroup/memory.max"),
        &text("/sys/fs/cgroup/memory.current"),
        &text("/sys/fs/cgroup/memory.stat"),
    )
    .or_else(|| {
        parse::cgroup_room_mib(
            &text("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
            &text("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
            &text("/sys/fs/cgroup/memory/memory.stat"),
        )
    });
    room.map_or(available, |room| room.min(available))
}

/// Returns an empty string if the file cannot be read.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directory_is_checked_at_nearest_ancestor() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let home = HomeFacts::read(directory.path().join("not/there/yet"));
        assert_eq!(home.writable, Ok(()));
        assert!(home.free_mib.is_some());
    }

    #[test]
    fn home_below_file_is_not_a_directory() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let home = HomeFacts::read(file.path().join("wisp"));
        assert_eq!(home.writable, Err(Errno::NOTDIR));
    }

    #[test]
    fn shell_is_installed_and_unknown_program_is_not() {
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program-anywhere"));
    }
}
