//! A vCPU's complete state, saved and restored in the order that KVM requires (Documentation/virt/kvm/api.rst).

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::msrs::set_each;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug_registers: kvm_debugregs,
    local_apic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    #[error("KVM failed to {what}: {source}")]
    Request { what: &'static str, source: kvm_ioctls::Error },
    #[error("KVM rejected the saved value {value:#x} of MSR {index:#x}")]
    Register { index: u32, value: u64 },
    #[error("the machine is already stopping")]
    Stopping,
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Request { what, source }
}

/// MSRs that KVM lets user space read but not write. Only Hyper-V guests use `HV_X64_MSR_TIME_REF_COUNT`.
const REFUSED_MSRS: [u32; 1] = [0x4000_0020];

pub fn saved_msrs(kvm: &Kvm) -> Result<Vec<u32>, StateError> {
    Ok(kvm.get_msr_index_list().map_err(failed("list its MSRs"))?.as_slice().to_vec())
}

impl VcpuState {
    /// Reads the state of a vCPU that is outside the guest and whose last exit is completed.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, StateError> {
        Ok(VcpuState {
            // Must be first: it processes pending events of the local APIC.
            mp_state: vcpu.get_mp_state().map_err(failed("read a vCPU's MP state"))?,
            regs: vcpu.get_regs().map_err(failed("read a vCPU's registers"))?,
            sregs: vcpu.get_sregs().map_err(failed("read a vCPU's system registers"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("read a vCPU's extended control registers"))?,
            xsave: vcpu.get_xsave().map_err(failed("read a vCPU's extended state"))?,
            debug_registers: vcpu.get_debug_regs().map_err(failed("read a vCPU's debug registers"))?,
            local_apic: vcpu.get_lapic().map_err(failed("read a local APIC's registers"))?,
            msrs: save_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(failed("read a vCPU's pending events"))?,
        })
    }

    /// Restores the state into a new vCPU, whose CPUID must be set already.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        vcpu.set_mp_state(self.mp_state).map_err(failed("set a vCPU's MP state"))?;
        vcpu.set_regs(&self.regs).map_err(failed("set a vCPU's registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(failed("set a vCPU's system registers"))?;
        // SAFETY: KVM reads no more than the 4096 bytes of `kvm_xsave`, because no larger states (AMX) were permitted
        // to guests of this process (api.rst, "KVM_SET_XSAVE").
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(failed("set a vCPU's extended state"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed("set a vCPU's extended control registers"))?;
        vcpu.set_debug_regs(&self.debug_registers).map_err(failed("set a vCPU's debug registers"))?;
        // Must precede the MSRs, which include the deadline of the APIC's timer.
        vcpu.set_lapic(&self.local_apic).map_err(failed("set a local APIC's registers"))?;
        restore_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(failed("set a vCPU's pending events"))?;
        notify_of_pause(vcpu);
        Ok(())
    }
}

/// Tells the guest that this vCPU was paused, so that its watchdogs do not report a lockup. KVM returns EINVAL if the
/// guest does not use kvmclock.
pub(super) fn notify_of_pause(vcpu: &VcpuFd) {
    if let Err(error) = vcpu.kvmclock_ctrl()
        && error.errno() != libc::EINVAL
    {
        log::debug!("KVM could not notify the guest of the pause: {error}");
    }
}

/// Reads the MSRs. KVM stops at an MSR that it cannot read, and its own list may contain such MSRs; they are skipped.
fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut saved = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let entries: Vec<_> = left.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("KVM's own list is within its limit");
        let count = vcpu.get_msrs(&mut msrs).map_err(failed("read a vCPU's MSRs"))?;
        saved.extend_from_slice(&msrs.as_slice()[..count]);
        left = &left[(count + 1).min(left.len())..];
    }
    rearm_deadline(&mut saved);
    Ok(saved)
}

/// Rearms the TSC-deadline timer if it reads as off. The timer may have expired without its interrupt being in the
/// saved local APIC, and the guest would wait forever. The guest may get an extra interrupt, which its timer code must
/// tolerate anyway.
fn rearm_deadline(msrs: &mut Vec<kvm_msr_entry>) {
    let value = |index: u32| msrs.iter().find(|msr| msr.index == index).map(|msr| msr.data);
    let (Some(now), Some(deadline)) = (value(MSR_IA32_TSC), value(MSR_IA32_TSC_DEADLINE)) else { return };
    // The deadline is a TSC value, so it must be restored after the TSC.
    msrs.retain(|msr| msr.index != MSR_IA32_TSC_DEADLINE);
    let data = if deadline == 0 { now } else { deadline };
    msrs.push(kvm_msr_entry { index: MSR_IA32_TSC_DEADLINE, data, ..Default::default() });
}

/// Restores the MSRs. Fails if KVM refuses an MSR that [`check_refused`] does not accept.
fn restore_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
    let refused = set_each(entries, |msrs| vcpu.set_msrs(msrs)).map_err(failed("set a vCPU's MSRs"))?;
    let value = |index| {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
        (vcpu.get_msrs(&mut msrs).ok()? == 1).then(|| msrs.as_slice()[0].data)
    };
    check_refused(&refused, value)
}

/// Fails if a refused MSR is not in [`REFUSED_MSRS`] and its current `value` is not the saved one.
fn check_refused(refused: &[kvm_msr_entry], value: impl Fn(u32) -> Option<u64>) -> Result<(), StateError> {
    for kvm_msr_entry { index, data, .. } in refused.iter().copied() {
        if !REFUSED_MSRS.contains(&index) && value(index) != Some(data) {
            return Err(StateError::Register { index, value: data });
        }
        log::debug!("KVM rejected MSR {index:#x}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_register_with_other_value_is_an_error() {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let value = |index| (index == 0x48).then_some(5);
        assert!(check_refused(&[], value).is_ok());
        assert!(check_refused(&[entry(0x48, 5), entry(REFUSED_MSRS[0], 9)], value).is_ok());
        for refused in [entry(0x48, 6), entry(0xc000_0103, 0)] {
            let error = check_refused(&[entry(0x48, 5), refused], value).unwrap_err();
            assert!(error.to_string().contains(&format!("{:#x}", refused.index)), "{error}");
        }
    }
}
