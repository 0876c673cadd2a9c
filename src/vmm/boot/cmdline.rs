//! The kernel command line. This file lists all options that the VMM adds, with reasons.

use super::BootError;
use crate::devices::{generation, pvpanic};
use crate::memory::VIRTIO_MMIO_SIZE;
use crate::virtio::mmio::MmioResources;
use machine::config::{DiskAccess, MachineConfig};

/// `COMMAND_LINE_SIZE` of x86, excluding the final NUL.
const LIMIT: usize = 2047;

const ALWAYS: &[&str] = &[
    // The serial port is the console, and there is only one.
    "console=ttyS0",
    "8250.nr_uarts=1",
    // A reboot uses the i8042's reset line, so the VMM can tell it from a crash.
    "reboot=k",
    // The kernel reboots immediately after it has reported a panic.
    "panic=-1",
    // The host keeps the clocks accurate, so the guest needs no clock watchdog and no timer test.
    "tsc=reliable",
    "no_timer_check",
    // For a single CPU, patching thousands of lock prefixes costs more than executing them.
    "noreplace-smp",
    // The kernel trusts the VMM's seed and the CPU's random numbers, so it need not wait for entropy.
    "random.trust_bootloader=on",
    "random.trust_cpu=on",
];

/// For all kernels except the embedded kernel, which has no i8042 driver. The controller has no devices to probe.
const I8042: &[&str] = &["i8042.noaux", "i8042.nomux", "i8042.dumbkbd"];

/// Kernel code is emulated, so splitting page tables to protect it has no effect.
const SOFTWARE_KVM: &[&str] = &["rodata=off"];

/// For a kernel that supports `wisp.software_kvm`: it then avoids the features that KVM's emulator does not support.
const SOFTWARE_KVM_AWARE: &[&str] = &[
    "wisp.software_kvm",
    // Memory accounting costs a few thousand instructions each time a program starts.
    "cgroup_disable=memory",
    // Avoids waking up an idle guest twice a second, which costs a few thousand instructions each time.
    "sysctl.vm.compaction_proactiveness=0",
    "sysctl.vm.stat_interval=60",
    // The TSC advances while a guest is saved. The kernel must not report that time as a stall.
    "rcupdate.rcu_cpu_stall_suppress=1",
];

/// For a root file system with its own init, which is booted with an initramfs. systemd's timeouts are too short for an
/// emulated kernel: systemd would kill slow services, including its journal and network services.
const SOFTWARE_KVM_SYSTEMD: &[&str] = &["systemd.default_timeout_start_sec=1800", "systemd.service_watchdogs=no"];

/// For any other kernel on software KVM. `clearcpuid` takes bit numbers (smap popcnt cx16 smep umip fsgsbase pcid
/// invpcid rdrand rdseed bmi1 bmi2 avx erms fsrm).
const SOFTWARE_KVM_UNAWARE: &[&str] = &[
    "noxsave",
    "clearcpuid=308,151,141,295,514,288,145,298,158,306,291,296,156,297,580",
    // Allocates the first per-CPU area in small pages. A huge page would have to be zeroed completely.
    "percpu_alloc=page",
    // Interpreting ACPI tables takes minutes. The MP table has the same content; kernels without MP support still boot.
    "acpi=off",
];

const EARLY_CONSOLE: &str = "earlyprintk=ttyS0,115200";

pub fn assemble(config: &MachineConfig, devices: &[MmioResources], software_kvm: bool) -> String {
    let mut options: Vec<String> = ALWAYS.iter().map(ToString::to_string).collect();
    options.push(format!("wisp.pvpanic_port={:#x}", pvpanic::PORT));
    options.push(format!("wisp.generation_port={:#x}", generation::PORT));
    let aware = config.kernel.software_kvm_aware;
    let more: &[&[&str]] = match (software_kvm, aware) {
        (false, true) => &[],
        (false, false) => &[I8042],
        (true, true) => &[SOFTWARE_KVM, SOFTWARE_KVM_AWARE],
        (true, false) => &[I8042, SOFTWARE_KVM, SOFTWARE_KVM_UNAWARE],
    };
    options.extend(more.concat().iter().map(ToString::to_string));
    if software_kvm && aware && config.kernel.initrd.is_some() {
        options.extend(SOFTWARE_KVM_SYSTEMD.iter().map(ToString::to_string));
    }
    if let Some(index) = config.disks.iter().position(|disk| disk.root) {
        let mode = if config.disks[index].access == DiskAccess::ReadOnly { "ro" } else { "rw" };
        options.push(format!("root=/dev/{} {mode}", disk_name(index)));
    }
    let given = [&config.kernel.cmdline, &config.kernel.identity_options].map(|options| options.trim());
    options.extend(given.into_iter().filter(|options| !options.is_empty()).map(ToString::to_string));
    // Shows errors that occur before the console is ready. It also prints earlier messages, so `quiet` must precede it.
    options.push(EARLY_CONSOLE.into());
    for device in devices {
        options.push(format!("virtio_mmio.device={VIRTIO_MMIO_SIZE:#x}@{:#x}:{}", device.address, device.irq));
    }
    // Options after `--` are passed to init, so the VMM's options must precede it.
    if let Some(index) = options.iter().position(|option| option.split_whitespace().any(|word| word == "--")) {
        let with_init = options.remove(index);
        options.push(with_init);
    }
    options.join(" ")
}

/// Returns Linux's name for the virtio disk in the slot with this index.
pub fn disk_name(index: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(index % 26).expect("a remainder is below 26"));
    format!("vd{letter}")
}

/// Checks that kernels accept all of `cmdline`.
pub(super) fn check(cmdline: &str) -> Result<(), BootError> {
    if let Some(position) = cmdline.bytes().position(|byte| matches!(byte, 0 | b'\n' | b'\r')) {
        return Err(BootError::CommandLineByte(position));
    }
    if cmdline.len() > LIMIT {
        return Err(BootError::CommandLineTooLong { length: cmdline.len(), limit: LIMIT });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::config::{BootProtocol, CpuConfig, DiskConfig, DiskFormat, KernelConfig};

    fn config(cmdline: &str) -> MachineConfig {
        let disk = |id: &str, root| DiskConfig {
            id: id.into(),
            path: "disk".into(),
            format: DiskFormat::Raw,
            access: DiskAccess::Ephemeral,
            root,
            backing: Vec::new(),
            was: None,
            limits: None,
        };
        MachineConfig {
            cpus: CpuConfig { count: 1, threads_per_core: 1 },
            memory_mib: 256,
            kernel: KernelConfig {
                path: "vmlinux".into(),
                initrd: None,
                cmdline: cmdline.into(),
                identity_options: String::new(),
                protocol: BootProtocol::Auto,
                software_kvm_aware: false,
            },
            disks: vec![disk("a", false), disk("b", true)],
            disk_slots: 0,
            vsock: None,
            net: None,
            cpu_budget: None,
            disk_limits: None,
            identity: None,
        }
    }

    #[test]
    fn command_line_names_root_and_devices() {
        let devices = [MmioResources { address: 0xd000_0000, irq: 5 }, MmioResources { address: 0xd000_1000, irq: 6 }];
        let line = assemble(&config("quiet"), &devices, false);
        assert!(line.contains("root=/dev/vdb rw quiet"), "{line}");
        assert!(
            line.ends_with("virtio_mmio.device=0x1000@0xd0000000:5 virtio_mmio.device=0x1000@0xd0001000:6"),
            "{line}"
        );
        assert!(!line.contains("software_kvm"), "{line}");
    }

    #[test]
    fn software_kvm_options_follow_kernel_support() {
        let mut config = config("");
        let line = assemble(&config, &[], true);
        assert!(line.contains("noxsave clearcpuid=308,") && !line.contains("wisp.software_kvm"), "{line}");
        config.kernel.software_kvm_aware = true;
        let line = assemble(&config, &[], true);
        assert!(line.contains("wisp.software_kvm") && !line.contains("clearcpuid"), "{line}");
        assert!(!line.contains("systemd."), "{line}");
        config.kernel.initrd = Some("agent.cpio".into());
        let line = assemble(&config, &[], true);
        assert!(line.contains("systemd.service_watchdogs=no"), "{line}");
    }

    #[test]
    fn options_for_init_stay_last() {
        let devices = [MmioResources { address: 0xd000_0000, irq: 5 }];
        let line = assemble(&config("quiet -- single"), &devices, false);
        assert!(line.ends_with("virtio_mmio.device=0x1000@0xd0000000:5 quiet -- single"), "{line}");
    }

    #[test]
    fn invalid_command_line_is_refused() {
        assert!(matches!(check(&"x".repeat(2048)), Err(BootError::CommandLineTooLong { length: 2048, .. })));
        assert!(matches!(check("a\nb"), Err(BootError::CommandLineByte(1))));
        assert!(check(&"x".repeat(2047)).is_ok());
    }
}
