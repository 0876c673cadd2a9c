//! Turns facts about the host into findings, one for each part of the host. Does no I/O.

use rustix::io::Errno;
use serde::Serialize;

use super::access::{self, KvmAccessError};
use super::facts::{
    Facts, Helper, HomeFacts, HostEnvironment, KVM_MODULES, NamespaceSetting, REQUIRED_CAPABILITIES, VpcFacts,
};
use super::fix::Fix;
use super::parse::HugePages;
use crate::router::KilledRouter;
use ec2::size::approximate_mib;
use machine::network::ALLOW_LOW_PORTS;

/// Below this much free memory, even a small guest may fail to start.
const SCARCE_MEMORY_MIB: u64 = 128;
/// Below this much free memory, few instance types fit.
const LITTLE_MEMORY_MIB: u64 = 1024;
/// Below this much free space, an image cannot be unpacked.
const SCARCE_SPACE_MIB: u64 = 64;
/// Below this much free space, imported images and volumes soon fill the disk.
const LITTLE_SPACE_MIB: u64 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Guests can run, with limitations.
    Warn,
    /// Guests cannot run.
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Finding {
    pub name: &'static str,
    pub status: Severity,
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Finding { name, status: Severity::Ok, found: found.into(), explanation: None, fixes: Vec::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>) -> Self {
        Finding { status: Severity::Warn, ..Finding::ok(name, found) }
    }

    fn fail(name: &'static str, found: impl Into<String>) -> Self {
        Finding { status: Severity::Fail, ..Finding::ok(name, found) }
    }

    fn explained(self, explanation: impl Into<String>) -> Self {
        Finding { explanation: Some(explanation.into()), ..self }
    }

    fn fixed_by(self, purpose: &'static str, command: impl Into<String>) -> Self {
        Finding { fixes: vec![Fix::new(purpose, command)], ..self }
    }
}

/// Returns all findings, in the order in which to fix problems.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![cpu(facts)];
    findings.extend(kvm(facts));
    findings.push(memory(facts.memory_available_mib));
    findings.extend(facts.huge_pages.map(huge_pages));
    findings.extend(home(facts.home.as_ref()));
    findings.extend(facts.helpers.iter().map(|(helper, installed)| self::helper(helper, *installed)));
    findings.push(vpc(facts.vpc));
    findings.extend(facts.killed_routers.iter().map(killed_router));
    findings.push(low_ports(facts.low_ports));
    findings.push(sandbox(facts.landlock, facts.vpc.forbidden_by));
    findings
}

fn cpu(facts: &Facts) -> Finding {
    let model = match facts.environment.cpu.model.as_str() {
        "" => "unknown CPU",
        model => model,
    };
    let plural = if facts.cpus == 1 { "" } else { "s" };
    Finding::ok("CPU", format!("{model}, {} usable CPU{plural}", facts.cpus))
}

/// Checks the device, the interface and the creation of a virtual machine. Stops at the first failure.
fn kvm(facts: &Facts) -> Vec<Finding> {
    let failed =
        |name, error: KvmAccessError| Finding { fixes: error.fixes(), ..Finding::fail(name, error.to_string()) };
    let mut findings = Vec::from_iter(virtualization(&facts.environment));
    if let Err(error) = access::judge_device(&facts.kvm, &facts.environment) {
        findings.push(failed("/dev/kvm", error));
        return findings;
    }
    findings.push(Finding::ok("/dev/kvm", "accessible"));
    if let Err(error) = access::judge_interface(&facts.kvm) {
        findings.push(failed("KVM interface", error));
        return findings;
    }
    findings.extend(facts.kvm.interface.as_ref().map(|interface| {
        let found = format!(
            "version {}, all {} required capabilities, up to {} vCPUs",
            interface.api_version,
            REQUIRED_CAPABILITIES.len(),
            interface.max_vcpus,
        );
        Finding::ok("KVM interface", found)
    }));
    match access::judge_creation(&facts.kvm, &facts.environment) {
        Err(error) => findings.push(failed("Virtual machine", error)),
        Ok(()) => findings.push(Finding::ok("Virtual machine", "ok (created and released one)")),
    }
    findings
}

/// Reports the kind of virtualization. Returns `None` if there is none, which the finding about `/dev/kvm` reports.
fn virtualization(environment: &HostEnvironment) -> Option<Finding> {
    const NAME: &str = "Virtualization";
    let cpu = &environment.cpu;
    let extension = match (cpu.has_vmx, cpu.has_svm) {
        (true, _) => "VT-x",
        (_, true) => "AMD-V",
        _ => {
            let module = environment.modules.iter().find(|module| KVM_MODULES.contains(module))?;
            return Some(Finding::warn(NAME, format!("software KVM ({module})")).explained(
                "The CPU has neither VMX nor SVM, so guest kernels are emulated: booting and \
                 system calls take many times longer. Programs run at full speed.",
            ));
        }
    };
    if cpu.is_virtual {
        return Some(
            Finding::ok(NAME, format!("hardware ({extension}), nested"))
                .explained("This host is itself a virtual machine. Guests can run, but each VM exit takes longer."),
        );
    }
    Some(Finding::ok(NAME, format!("hardware ({extension})")))
}

fn memory(available_mib: u64) -> Finding {
    const NAME: &str = "Memory";
    let found = format!("{} free", approximate_mib(available_mib));
    match available_mib {
        ..SCARCE_MEMORY_MIB => Finding::fail(NAME, found)
            .explained("Too little memory for a guest. Close other programs.")
            .fixed_by("List the processes that use the most memory", "ps -eo rss,comm --sort=-rss | head"),
        SCARCE_MEMORY_MIB..LITTLE_MEMORY_MIB => Finding::warn(NAME, found)
            .explained("Only the smallest instance types fit.")
            .fixed_by("List the types that fit", "wisp types --fits"),
        _ => Finding::ok(NAME, found),
    }
}

fn huge_pages(setting: HugePages) -> Finding {
    const NAME: &str = "Huge pages";
    match setting {
        HugePages::Always => Finding::ok(NAME, "always"),
        HugePages::OnRequest => Finding::ok(NAME, "on request (madvise)"),
        HugePages::Never => Finding::warn(NAME, "never")
            .explained("Memory access is slower in large guests without huge pages.")
            .fixed_by("Until the next reboot", "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"),
    }
}

fn home(home: Option<&HomeFacts>) -> Vec<Finding> {
    const NAME: &str = "Data directory";
    let Some(home) = home else {
        return vec![
            Finding::fail(NAME, "neither WISP_HOME nor HOME is set")
                .fixed_by("Set a data directory", "export WISP_HOME=/var/tmp/wisp"),
        ];
    };
    let path = home.path.display();
    if let Err(errno) = home.writable {
        return vec![
            Finding::fail(NAME, format!("cannot write to {path}: {errno}"))
                .fixed_by("Use another directory", "export WISP_HOME=/var/tmp/wisp"),
        ];
    }
    let mut findings = vec![Finding::ok(NAME, path.to_string())];
    findings.extend(home.free_mib.map(space));
    findings
}

fn space(free_mib: u64) -> Finding {
    const NAME: &str = "Disk space";
    let found = format!("{} free", approximate_mib(free_mib));
    let elsewhere = ("Use another directory", "export WISP_HOME=/path/with/more/space");
    match free_mib {
        ..SCARCE_SPACE_MIB => Finding::fail(NAME, found)
            .explained("Too little space for images and volumes.")
            .fixed_by(elsewhere.0, elsewhere.1),
        SCARCE_SPACE_MIB..LITTLE_SPACE_MIB => Finding::warn(NAME, found)
            .explained("A few images and volumes would fill the disk.")
            .fixed_by(elsewhere.0, elsewhere.1),
        _ => Finding::ok(NAME, found),
    }
}

/// Loads the nftables module for bridge expressions. A kernel with this module also has the bridge family.
const BRIDGE_MODULE: &str = "sudo modprobe nft_meta_bridge";

fn vpc(facts: VpcFacts) -> Finding {
    const NAME: &str = "VPC";
    let only = "VPCs are unavailable. Each guest gets its own network instead (`--network user`).";
    match (facts.tun, facts.forbidden_by) {
        (Ok(()), None) if facts.lacks_bridge_rules => {
            let found = Finding::warn(NAME, "the kernel's nftables lacks the bridge family (CONFIG_NF_TABLES_BRIDGE)");
            found.explained(only).fixed_by("Load the module, or install a kernel that has it", BRIDGE_MODULE)
        }
        (Ok(()), None) => Finding::ok(NAME, "ok (tap devices, user and network namespaces)"),
        (Err(Errno::NOENT | Errno::NODEV), _) => {
            let found = Finding::warn(NAME, "/dev/net/tun, which creates tap devices, is missing").explained(only);
            found.fixed_by("Load the module", "sudo modprobe tun")
        }
        (Err(error), _) => {
            let found = Finding::warn(NAME, format!("cannot open /dev/net/tun, which creates tap devices: {error}"));
            found.explained(only).fixed_by("Restore its default mode", "sudo chmod 0666 /dev/net/tun")
        }
        (Ok(()), Some(setting)) => {
            let found = Finding::warn(NAME, format!("user namespaces are disabled by {}", setting.name));
            let neither = "VPCs and passt are unavailable, so guests have no outbound connectivity.";
            found
                .explained(if setting.for_all { neither } else { only })
                .fixed_by("Enable user namespaces", setting.fix())
        }
    }
}

/// The next command that opens the data directory restarts the router, if possible.
fn killed_router(killed: &KilledRouter) -> Finding {
    let KilledRouter { vpc, is_recoverable, disconnected } = killed;
    let found = Finding::warn("VPC router", format!("the router of {vpc} was killed while its instances were running"));
    match (is_recoverable, disconnected.as_slice()) {
        (true, []) => found
            .explained("The instances can reach each other, but nothing outside the VPC.")
            .fixed_by("Restart the router (other commands do, too)", "wisp ls"),
        (true, _) => {
            let text = format!("Stop and start these instances to reconnect them: {}.", disconnected.join(", "));
            found.explained(text).fixed_by("Restart the router for the other instances", "wisp ls")
        }
        (false, _) => {
            let all = disconnected.join(" ");
            let found =
                found.explained("The instances have no network, and none of them holds the router's namespace.");
            found.fixed_by("Reconnect the instances", format!("wisp stop {all} && wisp start {all}"))
        }
    }
}

fn low_ports(listened: Result<(), Errno>) -> Finding {
    const NAME: &str = "Ports below 1024";
    match listened {
        Err(Errno::ACCESS | Errno::PERM) => Finding::warn(NAME, "only root can bind them")
            .explained(
                "SSH and HTTP do not work at instances' public addresses. `wisp ssh` connects through the guest agent \
                 instead, and `-p 8080:80` publishes the guest's port 80 as port 8080.",
            )
            .fixed_by("Allow ports from 22 up, until the next reboot", ALLOW_LOW_PORTS),
        // EADDRINUSE means that this user may bind the port.
        _ => Finding::ok(NAME, "available for SSH and servers at public addresses"),
    }
}

/// Judges the sandbox's optional layers. Seccomp filters are available on every host.
fn sandbox(landlock: u32, forbidden_by: Option<NamespaceSetting>) -> Finding {
    const NAME: &str = "Sandbox";
    const WITHOUT: &str = "VMMs run without this layer. Their seccomp filters still apply (docs/security.md).";
    match (landlock, forbidden_by) {
        (_, Some(setting)) => {
            let found = Finding::warn(NAME, format!("user namespaces are disabled by {}", setting.name));
            found.explained(WITHOUT).fixed_by("Enable user namespaces", setting.fix())
        }
        (0, None) => Finding::warn(NAME, "seccomp and namespaces; the kernel lacks Landlock or has it disabled")
            .explained(WITHOUT),
        (version, None) => Finding::ok(NAME, format!("seccomp, namespaces, Landlock (version {version})")),
    }
}

fn helper(helper: &Helper, installed: bool) -> Finding {
    let Helper { program, purpose, package } = helper;
    if installed {
        return Finding::ok(program, format!("installed, for {purpose}"));
    }
    Finding::warn(program, format!("not installed; optional, for {purpose}"))
        .fixed_by("Install it", format!("sudo apt install {package}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::facts::{HELPERS, KvmFacts, KvmInterface};
    use crate::probe::parse::Cpu;
    use rustix::io::Errno;

    fn laptop() -> Facts {
        Facts {
            kvm: KvmFacts {
                node: None,
                opened: Ok(()),
                interface: Some(KvmInterface { api_version: 12, missing: Vec::new(), max_vcpus: 1024 }),
                created_vm: Some(Ok(())),
            },
            environment: HostEnvironment {
                cpu: Cpu { model: "Test CPU".into(), has_vmx: true, ..Cpu::default() },
                modules: vec!["kvm_intel"],
                ..HostEnvironment::default()
            },
            cpus: 8,
            memory_available_mib: 16_000,
            huge_pages: Some(HugePages::OnRequest),
            home: Some(HomeFacts {
                path: "/home/ann/.local/share/wisp".into(),
                writable: Ok(()),
                free_mib: Some(50_000),
            }),
            helpers: HELPERS.map(|helper| (helper, true)).to_vec(),
            vpc: VpcFacts { tun: Ok(()), forbidden_by: None, lacks_bridge_rules: false },
            killed_routers: Vec::new(),
            low_ports: Ok(()),
            landlock: 7,
        }
    }

    fn find(facts: &Facts, name: &str) -> Option<Finding> {
        judge(facts).into_iter().find(|finding| finding.name == name)
    }

    fn status(facts: &Facts, name: &str) -> Option<Severity> {
        find(facts, name).map(|finding| finding.status)
    }

    #[test]
    fn working_host_has_no_fixes() {
        for finding in judge(&laptop()) {
            assert_eq!(finding.status, Severity::Ok, "{finding:?}");
            assert!(finding.fixes.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn software_kvm_warns_with_explanation() {
        let mut facts = laptop();
        facts.environment.cpu.has_vmx = false;
        facts.environment.modules = vec!["kvm_pvm"];
        let finding = find(&facts, "Virtualization").expect("a finding");
        assert_eq!(finding.status, Severity::Warn);
        assert_eq!(finding.found, "software KVM (kvm_pvm)");
        assert!(finding.explanation.is_some_and(|text| text.contains("guest kernels are emulated")));
    }

    #[test]
    fn inaccessible_software_kvm_still_warns() {
        let mut facts = laptop();
        facts.environment.cpu.has_vmx = false;
        facts.environment.modules = vec!["kvm_pvm"];
        facts.kvm.opened = Err(Errno::ACCESS);
        assert_eq!(status(&facts, "Virtualization"), Some(Severity::Warn));
        assert_eq!(status(&facts, "/dev/kvm"), Some(Severity::Fail));
    }

    #[test]
    fn cpu_without_virtualization_is_one_failure() {
        let mut facts = laptop();
        facts.environment.cpu.has_vmx = false;
        facts.environment.modules.clear();
        facts.kvm.opened = Err(Errno::NOENT);
        let failures = judge(&facts).into_iter().filter(|finding| finding.status == Severity::Fail);
        assert_eq!(failures.map(|finding| finding.name).collect::<Vec<_>>(), ["/dev/kvm"]);
    }

    #[test]
    fn nested_virtualization_is_reported() {
        let mut facts = laptop();
        facts.environment.cpu.is_virtual = true;
        let finding = find(&facts, "Virtualization").expect("a finding");
        assert_eq!((finding.status, finding.found.as_str()), (Severity::Ok, "hardware (VT-x), nested"));
    }

    #[test]
    fn unopened_device_skips_further_kvm_checks() {
        let mut facts = laptop();
        facts.kvm.opened = Err(Errno::NOENT);
        facts.environment.modules.clear();
        let finding = find(&facts, "/dev/kvm").expect("a finding");
        assert_eq!(finding.status, Severity::Fail);
        assert_eq!(finding.fixes[0].command, "sudo modprobe kvm_intel");
        assert_eq!(status(&facts, "KVM interface"), None);
        assert_eq!(status(&facts, "Virtual machine"), None);
    }

    #[test]
    fn busy_cpu_fails_virtual_machine() {
        let mut facts = laptop();
        facts.kvm.created_vm = Some(Err(Errno::BUSY));
        assert_eq!(status(&facts, "/dev/kvm"), Some(Severity::Ok));
        assert_eq!(status(&facts, "Virtual machine"), Some(Severity::Fail));
    }

    #[test]
    fn low_memory_warns_and_scarce_memory_fails() {
        let judged = |mib| memory(mib).status;
        assert_eq!(judged(127), Severity::Fail);
        assert_eq!(judged(128), Severity::Warn);
        assert_eq!(judged(1023), Severity::Warn);
        assert_eq!(judged(1024), Severity::Ok);
    }

    #[test]
    fn unwritable_data_directory_fails() {
        let mut facts = laptop();
        facts.home.as_mut().expect("it exists").writable = Err(Errno::ROFS);
        assert_eq!(status(&facts, "Data directory"), Some(Severity::Fail));
        assert_eq!(status(&facts, "Disk space"), None);
        facts.home = None;
        assert_eq!(status(&facts, "Data directory"), Some(Severity::Fail));
    }

    #[test]
    fn low_space_warns_and_scarce_space_fails() {
        assert_eq!(space(63).status, Severity::Fail);
        assert_eq!(space(64).status, Severity::Warn);
        assert_eq!(space(2048).status, Severity::Ok);
    }

    #[test]
    fn missing_helper_warns_with_install_command() {
        let mut facts = laptop();
        facts.helpers[0].1 = false;
        let finding = find(&facts, "qemu-img").expect("a finding");
        assert_eq!(finding.status, Severity::Warn);
        assert_eq!(
            finding.found,
            "not installed; optional, for converting disk formats that `wisp image import` cannot read"
        );
        assert_eq!(finding.fixes[0].command, "sudo apt install qemu-utils");
    }

    #[test]
    fn missing_vpc_feature_has_fix_command() {
        let lacks = |tun, forbidden_by, lacks_bridge_rules| {
            vpc(VpcFacts { tun, forbidden_by, lacks_bridge_rules }).fixes[0].command.to_string()
        };
        let fix = |tun, forbidden_by| lacks(tun, forbidden_by, false);
        assert_eq!(lacks(Ok(()), None, true), BRIDGE_MODULE);
        assert_eq!(fix(Err(Errno::ACCESS), None), "sudo chmod 0666 /dev/net/tun");
        assert_eq!(fix(Err(Errno::NOENT), None), "sudo modprobe tun");
        assert_eq!(
            fix(Ok(()), Some(NamespaceSetting { name: "user.max_user_namespaces", allows: "15000", for_all: true })),
            "sudo sysctl user.max_user_namespaces=15000"
        );
    }

    #[test]
    fn killed_router_warns_with_fix_command() {
        let mut facts = laptop();
        assert_eq!(status(&facts, "VPC router"), None);
        let killed = |is_recoverable, disconnected: &[&str]| {
            let disconnected = disconnected.iter().map(|name| name.to_string()).collect();
            vec![KilledRouter { vpc: "vpc-1".into(), is_recoverable, disconnected }]
        };
        facts.killed_routers = killed(true, &[]);
        let finding = find(&facts, "VPC router").expect("a finding");
        assert_eq!((finding.status, finding.fixes[0].command.as_str()), (Severity::Warn, "wisp ls"));
        facts.killed_routers = killed(false, &["i-1", "i-2"]);
        let finding = find(&facts, "VPC router").expect("a finding");
        assert_eq!(finding.fixes[0].command, "wisp stop i-1 i-2 && wisp start i-1 i-2");
    }

    #[test]
    fn denied_low_ports_warn_and_used_ports_do_not() {
        assert_eq!(low_ports(Err(Errno::ACCESS)).status, Severity::Warn);
        assert_eq!(low_ports(Err(Errno::ADDRINUSE)).status, Severity::Ok);
    }

    #[test]
    fn disabled_huge_pages_warn() {
        assert_eq!(huge_pages(HugePages::Never).status, Severity::Warn);
        assert_eq!(huge_pages(HugePages::Always).status, Severity::Ok);
    }
}
