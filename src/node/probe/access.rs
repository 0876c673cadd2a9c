//! Finds the reason why KVM is unusable, given the facts about the host. Does no I/O.

use rustix::io::Errno;

use super::facts::{DeviceNode, HostEnvironment, KVM_MODULES, KvmFacts, RIVAL_MODULES};
use super::parse::Cpu;

/// Version of KVM's API, unchanged since Linux 2.6.22.
const API_VERSION: i32 = 12;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvmAccessError {
    /// The CPU has no virtualization extensions, or the firmware has disabled them.
    #[error(
        "/dev/kvm is missing: the CPU's virtualization extensions are missing or disabled. Reboot into the \
         firmware setup (BIOS) and enable {switch}"
    )]
    NoVirtualization {
        /// The firmware's name of the setting.
        switch: &'static str,
    },
    #[error(
        "/dev/kvm is missing: this host is a virtual machine without nested virtualization. \
         Enable nested virtualization in its hypervisor, or use another host"
    )]
    NoNestedVirtualization,
    #[error("/dev/kvm is missing: the kernel module {module} is not loaded")]
    ModuleNotLoaded { module: &'static str },
    /// The module is loaded, but the container has no device node.
    #[error("/dev/kvm is missing: the container was started without this device")]
    NotInContainer,
    #[error("/dev/kvm is missing: KVM is loaded, but its device node does not exist")]
    NodeMissing,
    #[error("/dev/kvm is accessible only to the group {group}, and {user} is not in it")]
    NotInGroup { group: String, user: String },
    #[error("{user} was added to the group {group}, but this takes effect only at the next login")]
    StaleLogin { group: String, user: String },
    #[error("only root can access /dev/kvm (mode {mode:04o})")]
    RootOnly { mode: u32, user: String, has_kvm_group: bool },
    #[error(
        "access to /dev/kvm is denied although its permissions allow it: {}",
        if *in_container { "the container was started without the device" }
        else { "a security module or a device cgroup denies it" }
    )]
    Forbidden { in_container: bool },
    #[error("cannot open /dev/kvm: {0}")]
    OpenFailed(Errno),
    #[error("/dev/kvm has KVM API version {found}, but wisp requires version {API_VERSION}")]
    WrongApiVersion { found: i32 },
    /// The kernel is too old or was built without required features.
    #[error("this kernel's KVM lacks {}", .0.join(", "))]
    MissingCapabilities(Vec<&'static str>),
    #[error("another hypervisor is using the CPU's virtualization extensions: {}", holder(rivals))]
    Busy { rivals: Vec<&'static str> },
    #[error("KVM cannot create a virtual machine: {0}")]
    CreateVmFailed(Errno),
}

pub fn judge(kvm: &KvmFacts, environment: &HostEnvironment) -> Result<(), KvmAccessError> {
    judge_device(kvm, environment)?;
    judge_interface(kvm)?;
    judge_creation(kvm, environment)
}

pub(super) fn judge_device(kvm: &KvmFacts, environment: &HostEnvironment) -> Result<(), KvmAccessError> {
    let Err(errno) = kvm.opened else {
        return Ok(());
    };
    Err(match (errno, &kvm.node) {
        // The node can exist before the module is loaded: systemd creates it at boot.
        (Errno::NOENT | Errno::NODEV | Errno::NXIO, _) => why_missing(environment),
        (Errno::ACCESS, Some(node)) => why_denied(node, environment),
        (Errno::ACCESS, None) | (Errno::PERM, _) => {
            KvmAccessError::Forbidden { in_container: environment.in_container }
        }
        (other, _) => KvmAccessError::OpenFailed(other),
    })
}

pub(super) fn judge_interface(kvm: &KvmFacts) -> Result<(), KvmAccessError> {
    match &kvm.interface {
        Some(interface) if interface.api_version != API_VERSION => {
            Err(KvmAccessError::WrongApiVersion { found: interface.api_version })
        }
        Some(interface) if !interface.missing.is_empty() => {
            Err(KvmAccessError::MissingCapabilities(interface.missing.clone()))
        }
        _ => Ok(()),
    }
}

pub(super) fn judge_creation(kvm: &KvmFacts, environment: &HostEnvironment) -> Result<(), KvmAccessError> {
    match kvm.created_vm {
        Some(Err(errno)) => Err(create_vm_error(errno, environment)),
        _ => Ok(()),
    }
}

pub fn create_vm_error(errno: Errno, environment: &HostEnvironment) -> KvmAccessError {
    if errno != Errno::BUSY {
        return KvmAccessError::CreateVmFailed(errno);
    }
    let is_rival = |module: &&'static str| RIVAL_MODULES.contains(module);
    KvmAccessError::Busy { rivals: environment.modules.iter().copied().filter(is_rival).collect() }
}

/// Returns true if the CPU has no virtualization extensions, so that only software KVM can work.
pub fn is_software(cpu: &Cpu) -> bool {
    !cpu.has_vmx && !cpu.has_svm
}

fn why_missing(environment: &HostEnvironment) -> KvmAccessError {
    let cpu = &environment.cpu;
    let is_kvm = |module: &&'static str| KVM_MODULES.contains(module);
    if environment.modules.iter().any(is_kvm) {
        return match environment.in_container {
            true => KvmAccessError::NotInContainer,
            false => KvmAccessError::NodeMissing,
        };
    }
    match cpu {
        Cpu { has_vmx: true, .. } => KvmAccessError::ModuleNotLoaded { module: "kvm_intel" },
        Cpu { has_svm: true, .. } => KvmAccessError::ModuleNotLoaded { module: "kvm_amd" },
        Cpu { is_virtual: true, .. } => KvmAccessError::NoNestedVirtualization,
        Cpu { vendor, .. } => KvmAccessError::NoVirtualization {
            switch: match vendor.as_str() {
                "GenuineIntel" => "Intel Virtualization Technology (VT-x)",
                "AuthenticAMD" | "HygonGenuine" => "SVM Mode (AMD-V)",
                _ => "hardware virtualization",
            },
        },
    }
}

fn why_denied(node: &DeviceNode, environment: &HostEnvironment) -> KvmAccessError {
    let user = &environment.user;
    let group_may = node.mode & 0o060 == 0o060;
    let others_may = node.mode & 0o006 == 0o006;
    let in_group = user.groups.contains(&node.group);
    if user.uid == 0 || others_may || (group_may && in_group) {
        return KvmAccessError::Forbidden { in_container: environment.in_container };
    }
    // Never suggest that a user join root's group.
    if !group_may || node.group == 0 {
        return KvmAccessError::RootOnly {
            mode: node.mode,
            user: user.name.clone(),
            has_kvm_group: environment.has_kvm_group,
        };
    }
    let group = node.group_name.clone().unwrap_or_else(|| node.group.to_string());
    let user_name = user.name.clone();
    if user.listed_groups.contains(&node.group) {
        KvmAccessError::StaleLogin { group, user: user_name }
    } else {
        KvmAccessError::NotInGroup { group, user: user_name }
    }
}

fn holder(rivals: &[&str]) -> &'static str {
    match rivals {
        ["vboxdrv", ..] => "probably VirtualBox, because vboxdrv is loaded",
        ["vmmon", ..] => "probably VMware, because vmmon is loaded",
        _ => "wisp does not recognize it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::facts::{KvmInterface, User};

    const KVM_GROUP: u32 = 104;

    fn working() -> KvmFacts {
        KvmFacts {
            node: Some(node(0o660, KVM_GROUP)),
            opened: Ok(()),
            interface: Some(KvmInterface { api_version: 12, missing: Vec::new(), max_vcpus: 1024 }),
            created_vm: Some(Ok(())),
        }
    }

    fn node(mode: u32, group: u32) -> DeviceNode {
        let group_name = Some(if group == 0 { "root" } else { "kvm" }.to_owned());
        DeviceNode { mode, group, group_name }
    }

    fn failing(errno: Errno, node: Option<DeviceNode>) -> KvmFacts {
        KvmFacts { node, opened: Err(errno), interface: None, created_vm: None }
    }

    fn laptop() -> HostEnvironment {
        HostEnvironment {
            cpu: Cpu { vendor: "GenuineIntel".into(), has_vmx: true, ..Cpu::default() },
            modules: vec!["kvm_intel"],
            user: User { name: "ann".into(), uid: 1000, ..User::default() },
            has_kvm_group: true,
            ..HostEnvironment::default()
        }
    }

    fn commands(error: &KvmAccessError) -> Vec<String> {
        error.fixes().into_iter().map(|fix| fix.command).collect()
    }

    fn denied(node: DeviceNode, environment: &HostEnvironment) -> KvmAccessError {
        judge(&failing(Errno::ACCESS, Some(node)), environment).expect_err("denied")
    }

    fn missing(environment: &HostEnvironment) -> KvmAccessError {
        judge(&failing(Errno::NOENT, None), environment).expect_err("missing")
    }

    #[test]
    fn working_kvm_is_accepted() {
        assert_eq!(judge(&working(), &laptop()), Ok(()));
    }

    #[test]
    fn missing_module_is_named_for_cpu() {
        let intel = HostEnvironment { modules: Vec::new(), ..laptop() };
        assert_eq!(missing(&intel), KvmAccessError::ModuleNotLoaded { module: "kvm_intel" });
        let cpu = Cpu { has_svm: true, ..Cpu::default() };
        let amd = HostEnvironment { cpu, ..intel };
        assert_eq!(commands(&missing(&amd))[0], "sudo modprobe kvm_amd");
    }

    #[test]
    fn node_without_module_counts_as_missing() {
        let environment = HostEnvironment { modules: Vec::new(), ..laptop() };
        let kvm = failing(Errno::NODEV, Some(node(0o660, KVM_GROUP)));
        let error = judge(&kvm, &environment).expect_err("not loaded");
        assert_eq!(error, KvmAccessError::ModuleNotLoaded { module: "kvm_intel" });
    }

    #[test]
    fn disabled_virtualization_suggests_firmware_setup() {
        let cpu = Cpu { vendor: "AuthenticAMD".into(), ..Cpu::default() };
        let error = missing(&HostEnvironment { cpu, modules: Vec::new(), ..laptop() });
        assert_eq!(error, KvmAccessError::NoVirtualization { switch: "SVM Mode (AMD-V)" });
        assert_eq!(commands(&error), ["systemctl reboot --firmware-setup"]);
    }

    #[test]
    fn missing_nested_virtualization_is_reported() {
        let cpu = Cpu { is_virtual: true, ..Cpu::default() };
        let error = missing(&HostEnvironment { cpu, modules: Vec::new(), ..laptop() });
        assert_eq!(error, KvmAccessError::NoNestedVirtualization);
    }

    #[test]
    fn container_without_device_suggests_device_option() {
        let container = HostEnvironment { in_container: true, ..laptop() };
        assert_eq!(missing(&container), KvmAccessError::NotInContainer);
        assert_eq!(commands(&missing(&container)), ["docker run --device /dev/kvm IMAGE"]);
        let forbidden = judge(&failing(Errno::PERM, Some(node(0o660, KVM_GROUP))), &container);
        assert_eq!(forbidden, Err(KvmAccessError::Forbidden { in_container: true }));
    }

    #[test]
    fn missing_node_is_reported() {
        assert_eq!(missing(&laptop()), KvmAccessError::NodeMissing);
    }

    #[test]
    fn user_outside_group_gets_usermod_and_setfacl() {
        let error = denied(node(0o660, KVM_GROUP), &laptop());
        assert_eq!(error.to_string(), "/dev/kvm is accessible only to the group kvm, and ann is not in it");
        assert_eq!(commands(&error), ["sudo usermod -aG kvm ann && newgrp kvm", "sudo setfacl -m u:ann:rw /dev/kvm"]);
    }

    #[test]
    fn stale_login_suggests_newgrp() {
        let mut environment = laptop();
        environment.user.listed_groups.push(KVM_GROUP);
        let error = denied(node(0o660, KVM_GROUP), &environment);
        assert_eq!(commands(&error), ["newgrp kvm"]);
    }

    #[test]
    fn root_only_device_suggests_chgrp() {
        let error = denied(node(0o600, 0), &laptop());
        assert_eq!(error.to_string(), "only root can access /dev/kvm (mode 0600)");
        let expected = "sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm";
        assert_eq!(commands(&error)[0], expected);
        let without_group = HostEnvironment { has_kvm_group: false, ..laptop() };
        let error = denied(node(0o600, 0), &without_group);
        assert_eq!(commands(&error)[..2], ["sudo groupadd --system kvm", expected]);
    }

    #[test]
    fn root_group_is_never_suggested() {
        let error = denied(node(0o660, 0), &laptop());
        assert!(matches!(error, KvmAccessError::RootOnly { .. }), "{error}");
    }

    #[test]
    fn denial_despite_permissions_is_forbidden() {
        let forbidden = KvmAccessError::Forbidden { in_container: false };
        let mut member = laptop();
        member.user.groups.push(KVM_GROUP);
        assert_eq!(denied(node(0o660, KVM_GROUP), &member), forbidden);
        assert_eq!(denied(node(0o666, 0), &laptop()), forbidden);
        let mut root = laptop();
        root.user.uid = 0;
        assert_eq!(denied(node(0o600, 0), &root), forbidden);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let mut kvm = working();
        kvm.interface.as_mut().expect("an interface").missing = vec!["KVM_CAP_IRQFD", "KVM_CAP_PIT2"];
        let error = judge(&kvm, &laptop()).expect_err("too old");
        assert_eq!(error.to_string(), "this kernel's KVM lacks KVM_CAP_IRQFD, KVM_CAP_PIT2");
        kvm.interface.as_mut().expect("an interface").api_version = 11;
        let error = judge(&kvm, &laptop());
        assert_eq!(error, Err(KvmAccessError::WrongApiVersion { found: 11 }));
    }

    #[test]
    fn rival_hypervisor_is_named() {
        let kvm = KvmFacts { created_vm: Some(Err(Errno::BUSY)), ..working() };
        let mut environment = laptop();
        environment.modules.push("vboxdrv");
        let error = judge(&kvm, &environment).expect_err("busy");
        assert!(error.to_string().ends_with("probably VirtualBox, because vboxdrv is loaded"), "{error}");
        assert_eq!(commands(&error), ["sudo modprobe -r vboxnetflt vboxnetadp vboxdrv"]);
        let error = create_vm_error(Errno::NOMEM, &environment);
        assert_eq!(error, KvmAccessError::CreateVmFailed(Errno::NOMEM));
    }

    #[test]
    fn other_open_error_is_reported() {
        let error = judge(&failing(Errno::MFILE, Some(node(0o660, KVM_GROUP))), &laptop());
        assert_eq!(error, Err(KvmAccessError::OpenFailed(Errno::MFILE)));
    }
}
