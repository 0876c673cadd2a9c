//! The kernel command line: every option that a machine adds is added here, with its reason.

use super::BootError;
use crate::vmm::config::{DiskAccess, MachineConfig};
use crate::vmm::devices::{generation, pvpanic};
use crate::vmm::memory::VIRTIO_MMIO_SIZE;
use crate::vmm::virtio::mmio::Slot;

/// `COMMAND_LINE_SIZE` of x86 less the final NUL.
const LIMIT: usize = 2047;

/// For every machine.
const ALWAYS: &[&str] = &[
    // The serial port is the console; there is one.
    "console=ttyS0",
    "8250.nr_uarts=1",
    // A restart pulls the i8042's reset line: the monitor tells it apart from a crash.
    "reboot=k",
    // A panic restarts at once, after it was reported.
    "panic=-1",
    // The host keeps the clocks: no watchdog over them, no test of the timer's wiring.
    "tsc=reliable",
    "no_timer_check",
    // Lock prefixes cost nothing: thousands of them need not be patched away where there is one CPU.
    "noreplace-smp",
    // The monitor's seed and the CPU's random numbers are good, so that nothing waits for entropy.
    "random.trust_bootloader=on",
    "random.trust_cpu=on",
];

/// For kernels other than the embedded one, which has no i8042 driver: the controller is there for ctrl-alt-del, so
/// nothing is to be probed on it.
const I8042: &[&str] = &["i8042.noaux", "i8042.nomux", "i8042.dumbkbd"];

/// Where KVM emulates the guest's kernel, whichever it is: no page tables are split to protect code that is emulated
/// anyway.
const SOFTWARE_KVM: &[&str] = &["rodata=off"];

/// There, for a kernel that switches off by itself what the emulator cannot do.
const SOFTWARE_KVM_AWARE: &[&str] = &[
    "wisp.software_kvm",
    // Each page that is touched would be accounted for, at some thousand instructions for each program that starts.
    "cgroup_disable=memory",
    // An idle guest has nothing to look after twice a second: a wake-up is some thousand instructions.
    "sysctl.vm.compaction_proactiveness=0",
    "sysctl.vm.stat_interval=60",
    // The counter goes on while a guest is saved, which is no stall.
    "rcupdate.rcu_cpu_stall_suppress=1",
];

/// There, for a root with an init of its own, which came with an initial RAM disk: systemd's deadlines are of kernels that
/// run. It would kill what is late, its own journal and network among it.
const SOFTWARE_KVM_SYSTEMD: &[&str] = &["systemd.default_timeout_start_sec=1800", "systemd.service_watchdogs=no"];

/// There, for any other kernel. `clearcpuid` takes bit numbers (smap popcnt cx16 smep umip fsgsbase pcid invpcid rdrand
/// rdseed bmi1 bmi2 avx erms fsrm).
const SOFTWARE_KVM_UNAWARE: &[&str] = &[
    "noxsave",
    "clearcpuid=308,151,141,295,514,288,145,298,158,306,291,296,156,297,580",
    // The first per-CPU area in small pages: a huge one would be zeroed whole.
    "percpu_alloc=page",
    // Interpreting tables takes minutes; the MP table says the same. A kernel without support for that one still boots.
    "acpi=off",
];

/// The serial port before there is a driver for it.
const EARLY_CONSOLE: &str = "earlyprintk=ttyS0,115200";

/// The whole command line of a machine whose virtio devices are at `slots`.
pub fn assemble(config: &MachineConfig, slots: &[Slot], software_kvm: bool) -> String {
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
    if !config.kernel.cmdline.trim().is_empty() {
        options.push(config.kernel.cmdline.trim().to_string());
    }
    // What goes wrong before the console is there is seen too. It says at once what was said before: `quiet` comes first.
    options.push(EARLY_CONSOLE.into());
    for slot in slots {
        options.push(format!("virtio_mmio.device={VIRTIO_MMIO_SIZE:#x}@{:#x}:{}", slot.address, slot.irq));
    }
    // What follows `--` would be init's: the machine's options stand before it.
    if let Some(index) = options.iter().position(|option| option.split_whitespace().any(|word| word == "--")) {
        let with_init = options.remove(index);
        options.push(with_init);
    }
    options.join(" ")
}

/// The name that Linux gives to the virtio disk with this index.
pub fn disk_name(index: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(index % 26).expect("a remainder of 26 fits"));
    format!("vd{letter}")
}

/// Checks that a kernel can read `cmdline` as it stands.
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
    use crate::vmm::config::{BootProtocol, CpuConfig, DiskConfig, DiskFormat, KernelConfig};

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
    fn root_and_devices_are_named() {
        let slots = [Slot { address: 0xd000_0000, irq: 5 }, Slot { address: 0xd000_1000, irq: 6 }];
        let line = assemble(&config("quiet"), &slots, false);
        assert!(line.contains("root=/dev/vdb rw quiet"), "{line}");
        assert!(
            line.ends_with("virtio_mmio.device=0x1000@0xd0000000:5 virtio_mmio.device=0x1000@0xd0001000:6"),
            "{line}"
        );
        assert!(!line.contains("software_kvm"), "{line}");
    }

    #[test]
    fn software_kvm_gets_the_options_that_the_kernel_needs() {
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
        let slots = [Slot { address: 0xd000_0000, irq: 5 }];
        let line = assemble(&config("quiet -- single"), &slots, false);
        assert!(line.ends_with("virtio_mmio.device=0x1000@0xd0000000:5 quiet -- single"), "{line}");
    }

    #[test]
    fn what_a_kernel_cannot_read_is_refused() {
        assert!(matches!(check(&"x".repeat(2048)), Err(BootError::CommandLineTooLong { length: 2048, .. })));
        assert!(matches!(check("a\nb"), Err(BootError::CommandLineByte(1))));
        assert!(check(&"x".repeat(2047)).is_ok());
    }
}
