//! The configuration of a machine: plain data, stored as JSON and validated before the machine is built.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::limits::{CpuBudgetConfig, DiskLimits, NetLimits};
use super::network::MacAddress;

/// Maximum number of vCPUs, which the embedded kernel supports.
pub const MAX_VCPUS: u32 = 64;
/// Minimum memory, which the embedded kernel and the agent need.
pub const MIN_MEMORY_MIB: u64 = 64;
/// Product name in the SMBIOS tables of a guest that boots without an identity.
const ANONYMOUS_PRODUCT: &str = "custom";
/// Maximum number of disks. Each virtio device needs an interrupt line of its own.
pub const MAX_DISKS: usize = 12;

/// Maximum number of kernel worker threads (io_uring) for one disk: for a flush, and for reads on some file systems.
pub const DISK_KERNEL_THREADS: u32 = 4;

/// The minimum MTU of an IPv4 network (RFC 791).
pub const MIN_MTU: u16 = 68;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    pub cpus: CpuConfig,
    pub memory_mib: u64,
    pub kernel: KernelConfig,
    /// Block devices in the guest's order: `/dev/vda`, `/dev/vdb` ...
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// The number of disk slots, if larger than that of `disks`. Disks can be attached to free slots of a running
    /// machine.
    #[serde(default)]
    pub disk_slots: usize,
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    #[serde(default)]
    pub net: Option<NetConfig>,
    #[serde(default)]
    pub identity: Option<SystemIdentity>,
    #[serde(default)]
    pub cpu_budget: Option<CpuBudgetConfig>,
    /// Aggregate limits of all disks that have limits.
    #[serde(default)]
    pub disk_limits: Option<DiskLimits>,
}

/// A machine's identity in its SMBIOS tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemIdentity {
    /// The manufacturer of the system, firmware, board and chassis.
    pub manufacturer: String,
    pub product: String,
    /// The UUID, most significant byte first. It is also the serial number.
    pub uuid: [u8; 16],
    /// The asset tag of the board.
    pub asset_tag: String,
}

/// The vCPUs: one socket with `count / threads_per_core` cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// The number of vCPUs, 1 to [`MAX_VCPUS`].
    pub count: u32,
    /// 1 or 2; `count` must be a multiple of it.
    pub threads_per_core: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// An ELF `vmlinux` or a `bzImage`.
    pub path: PathBuf,
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Options from the image or the user. The VMM adds those that the machine needs (`vmm::boot::cmdline`).
    #[serde(default)]
    pub cmdline: String,
    /// Options with the instance's identity: its host name, ID, network and seed. The first guest of a template boots
    /// without them.
    #[serde(default)]
    pub identity_options: String,
    #[serde(default)]
    pub protocol: BootProtocol,
    /// True if the kernel supports the option `wisp.software_kvm`. With it, the kernel avoids instructions that
    /// software KVM cannot emulate.
    #[serde(default)]
    pub software_kvm_aware: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// PVH if an ELF kernel has a PVH note, otherwise the 64-bit Linux boot protocol.
    #[default]
    Auto,
    /// The 64-bit entry point of the Linux boot protocol (`Documentation/arch/x86/boot.rst`).
    Linux64,
    /// Xen's PVH direct boot. The kernel must be an ELF file with a PVH note.
    Pvh,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The response to virtio-blk's `GET_ID`, which the guest shows as the disk's serial number. At most 20 bytes.
    pub id: String,
    pub path: PathBuf,
    pub format: DiskFormat,
    /// The backing files of a qcow2 image, topmost first. No other file is opened, whatever the image's header names.
    #[serde(default)]
    pub backing: Vec<BackingFile>,
    pub access: DiskAccess,
    #[serde(default)]
    pub root: bool,
    /// The disk's ID in the snapshot to restore from, if different.
    #[serde(default)]
    pub was: Option<String>,
    #[serde(default)]
    pub limits: Option<DiskLimits>,
}

impl DiskConfig {
    /// Returns the configuration of a disk without backing files or limits that is not the root disk.
    pub fn new(id: impl Into<String>, path: PathBuf, format: DiskFormat, access: DiskAccess) -> DiskConfig {
        let (id, backing) = (id.into(), Vec::new());
        DiskConfig { id, path, format, backing, access, root: false, was: None, limits: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingFile {
    pub path: PathBuf,
    pub format: DiskFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAccess {
    ReadWrite,
    /// Writes fail, and the device reports that it is read-only.
    ReadOnly,
    /// Writes go to an overlay that is deleted when the machine ends. The image itself is never written.
    Ephemeral,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context ID, 3 or more.
    pub cid: u32,
    /// The file that the guest reads from host port [`wisp_agent::seed::SEED_PORT`] on its first boot.
    #[serde(default)]
    pub seed: Option<PathBuf>,
}

/// The network device. The VMM gets its backend separately, as an open descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    pub mac: MacAddress,
    /// The size of the largest IP packet in bytes, [`MIN_MTU`] or more.
    pub mtu: u16,
    /// The file with the [`NetstackConfig`](crate::network::NetstackConfig), if the network has a netstack.
    #[serde(default)]
    pub link: Option<PathBuf>,
    #[serde(default)]
    pub limits: Option<NetLimits>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("a machine must have 1 to {MAX_VCPUS} vCPUs, not {0}")]
    CpuCount(u32),
    #[error("cannot divide {count} vCPUs into cores of {threads_per_core} threads; a core must have 1 or 2 threads")]
    Topology { count: u32, threads_per_core: u32 },
    #[error("a machine must have at least {MIN_MEMORY_MIB} MiB of memory, not {0} MiB")]
    Memory(u64),
    #[error("a machine can have at most {MAX_DISKS} disks, not {0}")]
    DiskCount(usize),
    #[error("the disk ID {0:?} must not be longer than 20 bytes")]
    DiskId(String),
    #[error("{0} disks are marked as the root disk; only one can be")]
    Roots(usize),
    /// CIDs 0 to 2 are reserved (virtio 1.2, section 5.10.4).
    #[error("the vsock context ID {0} is reserved; it must be 3 or more")]
    Cid(u32),
    #[error("the MTU must be at least {MIN_MTU}, not {0}")]
    Mtu(u16),
    #[error("{0} is a multicast MAC address; it must be a unicast address")]
    GroupAddress(MacAddress),
    #[error("invalid limits for {0}: a rate must be at least 1, and a peak rate must not be below its baseline")]
    Limits(&'static str),
}

impl DiskConfig {
    /// Returns the paths of the disk's files, the image first, each with true if it is opened for writing.
    pub fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        let image = (self.path.as_path(), self.access == DiskAccess::ReadWrite);
        std::iter::once(image).chain(self.backing.iter().map(|file| (file.path.as_path(), false)))
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.id.len() > 20 {
            return Err(ConfigError::DiskId(self.id.clone()));
        }
        if self.limits.iter().all(DiskLimits::is_sound) { Ok(()) } else { Err(ConfigError::Limits("a disk")) }
    }
}

impl MachineConfig {
    /// Returns the maximum number of the VMM's threads and processes: one per vCPU, and one plus the kernel's threads
    /// per disk slot. 24 more cover the other devices, the VMM itself and saving.
    pub fn threads(&self) -> u64 {
        let disk = 1 + u64::from(DISK_KERNEL_THREADS);
        u64::from(self.cpus.count) + self.all_disk_slots() as u64 * disk + 24
    }

    /// Removes the instance's identity from everything that the guest reads while it boots.
    pub fn hide_identity(&mut self) {
        self.kernel.identity_options.clear();
        if let Some(identity) = &mut self.identity {
            identity.product = ANONYMOUS_PRODUCT.into();
            identity.uuid = [0; 16];
            identity.asset_tag.clear();
        }
    }

    pub fn all_disk_slots(&self) -> usize {
        self.disks.len().max(self.disk_slots)
    }

    /// Validates the configuration without accessing the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let CpuConfig { count, threads_per_core } = self.cpus;
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(ConfigError::CpuCount(count));
        }
        if !matches!(threads_per_core, 1 | 2) || count % threads_per_core != 0 {
            return Err(ConfigError::Topology { count, threads_per_core });
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.all_disk_slots() > MAX_DISKS {
            return Err(ConfigError::DiskCount(self.all_disk_slots()));
        }
        self.disks.iter().try_for_each(DiskConfig::validate)?;
        let roots = self.disks.iter().filter(|disk| disk.root).count();
        if roots > 1 {
            return Err(ConfigError::Roots(roots));
        }
        if !self.cpu_budget.iter().all(CpuBudgetConfig::is_sound) {
            return Err(ConfigError::Limits("vCPUs"));
        }
        if !self.disk_limits.iter().all(DiskLimits::is_sound) {
            return Err(ConfigError::Limits("disks"));
        }
        match (&self.vsock, &self.net) {
            (_, Some(NetConfig { limits: Some(limits), .. })) if !limits.bytes.is_sound() => {
                Err(ConfigError::Limits("a network"))
            }
            (Some(vsock), _) if vsock.cid < 3 => Err(ConfigError::Cid(vsock.cid)),
            (_, Some(net)) if net.mtu < MIN_MTU => Err(ConfigError::Mtu(net.mtu)),
            (_, Some(net)) if net.mac.0[0] & 1 != 0 => Err(ConfigError::GroupAddress(net.mac)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            cpus: CpuConfig { count: 2, threads_per_core: 2 },
            memory_mib: 256,
            kernel: KernelConfig {
                path: "vmlinux".into(),
                initrd: None,
                cmdline: String::new(),
                identity_options: String::new(),
                protocol: BootProtocol::Auto,
                software_kvm_aware: false,
            },
            disks: vec![],
            disk_slots: 0,
            vsock: None,
            net: None,
            cpu_budget: None,
            disk_limits: None,
            identity: None,
        }
    }

    #[test]
    fn valid_configuration_round_trips_through_json() {
        let config = config();
        assert_eq!(config.validate(), Ok(()));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
    }

    #[test]
    fn hidden_identity_leaves_manufacturer_only() {
        let mut config = config();
        config.kernel.cmdline = "quiet".into();
        config.kernel.identity_options = "wisp.hostname=i-01234567".into();
        config.identity = Some(SystemIdentity {
            manufacturer: "Amazon EC2".into(),
            product: "t3.nano".into(),
            uuid: [7; 16],
            asset_tag: "i-0123456789abcdef0".into(),
        });
        config.hide_identity();
        let identity = config.identity.unwrap();
        assert_eq!((config.kernel.cmdline.as_str(), config.kernel.identity_options.as_str()), ("quiet", ""));
        assert_eq!((identity.manufacturer.as_str(), identity.product.as_str()), ("Amazon EC2", ANONYMOUS_PRODUCT));
        assert_eq!((identity.uuid, identity.asset_tag.as_str()), ([0; 16], ""));
    }

    #[test]
    fn vcpus_out_of_range_are_refused() {
        for count in [0, 65, u32::MAX] {
            let mut config = config();
            config.cpus = CpuConfig { count, threads_per_core: 1 };
            assert_eq!(config.validate(), Err(ConfigError::CpuCount(count)));
        }
    }

    #[test]
    fn indivisible_topology_is_refused() {
        let mut config = config();
        config.cpus = CpuConfig { count: 3, threads_per_core: 2 };
        assert_eq!(config.validate(), Err(ConfigError::Topology { count: 3, threads_per_core: 2 }));
    }

    #[test]
    fn too_little_memory_is_refused() {
        let mut config = config();
        config.memory_mib = 63;
        assert_eq!(config.validate(), Err(ConfigError::Memory(63)));
    }

    #[test]
    fn free_slots_count_as_disks() {
        let mut config = config();
        config.disk_slots = MAX_DISKS;
        assert_eq!(config.validate(), Ok(()));
        config.disk_slots += 1;
        assert_eq!(config.validate(), Err(ConfigError::DiskCount(MAX_DISKS + 1)));
    }

    #[test]
    fn reserved_context_ids_are_refused() {
        let mut config = config();
        config.vsock = Some(VsockConfig { cid: 2, seed: None });
        assert_eq!(config.validate(), Err(ConfigError::Cid(2)));
    }

    #[test]
    fn small_mtu_and_multicast_mac_are_refused() {
        let mut config = config();
        let mac = MacAddress([6, 0, 0, 0, 0, 1]);
        config.net = Some(NetConfig { mac, mtu: 9001, link: None, limits: None });
        assert_eq!(config.validate(), Ok(()));
        config.net = Some(NetConfig { mac, mtu: 67, link: None, limits: None });
        assert_eq!(config.validate(), Err(ConfigError::Mtu(67)));
        let mac = MacAddress([0xff; 6]);
        config.net = Some(NetConfig { mac, mtu: 1500, link: None, limits: None });
        assert_eq!(config.validate(), Err(ConfigError::GroupAddress(mac)));
    }
}
