//! The KVM virtual machine with its in-kernel interrupt controllers and timer.
//!
//! Creating it takes KVM milliseconds, mostly spent waiting, so a thread does it while the VMM starts up. `/dev/kvm` is
//! opened beforehand, because it is not reachable inside the sandbox.

use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::error::Error;
use super::memory::{self, GuestMemory};

const CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Pit2, "an in-kernel timer (KVM_CAP_PIT2)"),
    (Cap::Irqfd, "interrupts through eventfds (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications through eventfds (KVM_CAP_IOEVENTFD)"),
    (Cap::UserMemory, "user-space guest memory (KVM_CAP_USER_MEMORY)"),
    (Cap::ImmediateExit, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::ExtCpuid, "setting CPUID (KVM_CAP_EXT_CPUID)"),
    (Cap::SetTssAddr, "setting the TSS address (KVM_CAP_SET_TSS_ADDR)"),
];

#[derive(Debug)]
pub struct VirtualMachine {
    pub kvm: Kvm,
    /// The CPU features that KVM supports.
    pub supported: CpuId,
    /// Kept until the machine ends, because KVM destroys the guest when its descriptors are closed.
    pub vm: VmFd,
}

#[derive(Debug)]
pub struct PendingVm(JoinHandle<Result<VirtualMachine, Error>>);

impl VirtualMachine {
    /// Starts the creation of a virtual machine with `memory`, whose content may still be replaced by other mappings.
    pub fn begin(memory: &GuestMemory) -> Result<PendingVm, Error> {
        let (kvm, memory) = (open_kvm()?, memory.clone());
        let create = move || -> Result<VirtualMachine, Error> {
            let vm = create_vm(&kvm, &memory)?;
            Ok(VirtualMachine { supported: supported_cpuid(&kvm)?, kvm, vm })
        };
        let thread = thread::Builder::new().name("kvm".into()).spawn(create);
        thread.map(PendingVm).map_err(Error::host("start a thread"))
    }
}

impl PendingVm {
    pub fn finish(self) -> Result<VirtualMachine, Error> {
        self.0.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| Error::OpenKvm(error.into()))?;
    match CAPABILITIES.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(Error::Capability(name)),
        None => Ok(kvm),
    }
}

fn create_vm(kvm: &Kvm, memory: &GuestMemory) -> Result<VmFd, Error> {
    let vm = kvm.create_vm().map_err(Error::CreateVm)?;
    let tss = memory::KVM_TSS_ADDRESS as usize;
    vm.set_tss_address(tss).map_err(Error::kvm("set the TSS address"))?;
    disable_pmu(kvm, &vm)?;
    // Waits for a grace period of the kernel (SRCU). The first one of a virtual machine takes 0.1 ms, but 4 ms or more
    // after the devices below.
    register(&vm, memory)?;
    vm.create_irq_chip().map_err(Error::kvm("create an interrupt controller"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(Error::kvm("create a timer"))?;
    Ok(vm)
}

fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped at this address for the life of the process, and slots do not overlap.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("register guest memory"))?;
    }
    Ok(())
}

fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, Error> {
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("list its supported CPU features"))
}

/// Disables the guest's performance counters, if KVM can. Hiding them in CPUID is not enough, because CPUID has no bit
/// for AMD's four oldest counters.
fn disable_pmu(kvm: &Kvm, vm: &VmFd) -> Result<(), Error> {
    let can = kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if can <= 0 || can as u32 & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let mut off = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    off.args[0] = KVM_PMU_CAP_DISABLE.into();
    vm.enable_cap(&off).map_err(Error::kvm("disable the guest's performance counters"))
}
