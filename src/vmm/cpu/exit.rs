//! Parses each raw KVM exit into a typed enum. No other file interprets `kvm_run`.
//!
//! Source: the kernel's `Documentation/virt/kvm/api.rst`, section 5, "The kvm_run structure".

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::VcpuFd;

#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads `size` bytes from a port, `data.len() / size` times; more than once for a string instruction.
    PortRead {
        port: u16,
        /// 1, 2 or 4 bytes.
        size: usize,
        data: &'a mut [u8],
    },
    /// The guest wrote to a port. The fields are as in [`Exit::PortRead`].
    PortWrite {
        port: u16,
        size: usize,
        data: &'a [u8],
    },
    /// The guest reads from an address that is not guest memory.
    MmioRead {
        address: u64,
        data: &'a mut [u8],
    },
    MmioWrite {
        address: u64,
        data: &'a [u8],
    },
    /// A signal arrived, or `immediate_exit` was set.
    Interrupted,
    /// HLT. KVM reports it only if the interrupt controller is not in the kernel.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The guest asked KVM to shut down or reset. KVM defines the exit, but x86 guests are not expected to cause it.
    SystemEvent(SystemEvent),
    EmulationFailure(EmulationFailure),
    InternalError {
        suberror: u32,
        data: Vec<u64>,
    },
    EntryFailure {
        reason: u64,
    },
    /// An exit that the VMM does not handle.
    Unexpected {
        reason: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemEvent {
    Shutdown,
    Reset,
    Crash,
    Other(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulationFailure {
    /// Up to 15 bytes at the instruction pointer; empty if KVM did not provide them.
    pub instruction_bytes: Vec<u8>,
}

impl Exit<'_> {
    /// Returns the exit's index in [`EXIT_KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Exit::PortRead { .. } => 0,
            Exit::PortWrite { .. } => 1,
            Exit::MmioRead { .. } => 2,
            Exit::MmioWrite { .. } => 3,
            Exit::Interrupted => 4,
            Exit::Halt => 5,
            Exit::Shutdown => 6,
            Exit::SystemEvent(_) => 7,
            Exit::EmulationFailure(_) => 8,
            Exit::InternalError { .. } => 9,
            Exit::EntryFailure { .. } => 10,
            Exit::Unexpected { .. } => 11,
        }
    }
}

/// Runs the guest on this vCPU until it exits. Returns the errors of KVM_RUN; an interruption is [`Exit::Interrupted`].
pub fn run(vcpu: &mut VcpuFd) -> Result<Exit<'_>, kvm_ioctls::Error> {
    match vcpu.run() {
        Ok(_) => {}
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Exit::Interrupted),
        Err(error) => return Err(error),
    }
    Ok(parse(vcpu.get_kvm_run()))
}

fn parse(run: &mut kvm_run) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => parse_port(run),
        KVM_EXIT_MMIO => {
            // SAFETY: with this exit reason, `mmio` is the member of the union that KVM filled in.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let length = (mmio.len as usize).min(mmio.data.len());
            match mmio.is_write {
                0 => Exit::MmioRead { address: mmio.phys_addr, data: &mut mmio.data[..length] },
                _ => Exit::MmioWrite { address: mmio.phys_addr, data: &mmio.data[..length] },
            }
        }
        KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Interrupted,
        KVM_EXIT_HLT => Exit::Halt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: with this exit reason, `system_event` is the member of the union that KVM filled in.
            let event = unsafe { run.__bindgen_anon_1.system_event.type_ };
            Exit::SystemEvent(match event {
                KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::Shutdown,
                KVM_SYSTEM_EVENT_RESET => SystemEvent::Reset,
                KVM_SYSTEM_EVENT_CRASH => SystemEvent::Crash,
                other => SystemEvent::Other(other),
            })
        }
        KVM_EXIT_INTERNAL_ERROR => parse_internal_error(run),
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: with this exit reason, `fail_entry` is the member of the union that KVM filled in.
            let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
            Exit::EntryFailure { reason }
        }
        reason => Exit::Unexpected { reason },
    }
}

fn parse_port(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: with this exit reason, `io` is the member of the union that KVM filled in.
    let io = unsafe { run.__bindgen_anon_1.io };
    let length = usize::from(io.size) * io.count as usize;
    // SAFETY: KVM places the data of a port access inside the vCPU's own mapping, `data_offset` bytes behind the
    // start of `kvm_run`, with `size * count` bytes; the mapping lives as long as the borrow of `run`.
    let data = unsafe {
        let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(start, length)
    };
    let size = usize::from(io.size).max(1);
    match u32::from(io.direction) {
        KVM_EXIT_IO_IN => Exit::PortRead { port: io.port, size, data },
        _ => Exit::PortWrite { port: io.port, size, data },
    }
}

fn parse_internal_error(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: with this exit reason, `internal` and, for an emulation failure, `emulation_failure` are the members
    // of the union that KVM filled in; both begin with the same two words.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        let count = (internal.ndata as usize).min(internal.data.len());
        return Exit::InternalError { suberror: internal.suberror, data: internal.data[..count].to_vec() };
    }
    // SAFETY: as above.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let has_bytes =
        failure.ndata >= 1 && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    let instruction_bytes = if has_bytes {
        // SAFETY: the flag says that size and bytes are valid.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let length = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        instruction.insn_bytes[..length].to_vec()
    } else {
        Vec::new()
    };
    Exit::EmulationFailure(EmulationFailure { instruction_bytes })
}

#[cfg(test)]
mod tests {
    use machine::timeline::EXIT_KINDS;

    use super::*;

    #[test]
    fn exit_kind_names_are_unique() {
        let mut names = EXIT_KINDS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EXIT_KINDS.len());
        assert_eq!(EXIT_KINDS[Exit::Unexpected { reason: 0 }.kind()], "unexpected");
        assert_eq!(EXIT_KINDS[Exit::Shutdown.kind()], "shutdown");
    }

    #[test]
    fn emulation_failure_keeps_instruction_bytes() {
        let mut run = kvm_run { exit_reason: KVM_EXIT_INTERNAL_ERROR, ..Default::default() };
        let mut failure = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14 {
            suberror: KVM_INTERNAL_ERROR_EMULATION,
            ndata: 3,
            flags: u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
            ..Default::default()
        };
        let mut insn_bytes = [0; 15];
        insn_bytes[..2].copy_from_slice(&[0x0f, 0x0b]);
        failure.__bindgen_anon_1.__bindgen_anon_1 =
            kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14__bindgen_ty_1__bindgen_ty_1 { insn_size: 2, insn_bytes };
        run.__bindgen_anon_1.emulation_failure = failure;
        let Exit::EmulationFailure(failure) = parse(&mut run) else { panic!("not an emulation failure") };
        assert_eq!(failure.instruction_bytes, [0x0f, 0x0b]);
    }

    #[test]
    fn mmio_write_is_parsed_with_address_and_data() {
        let mut run = kvm_run { exit_reason: KVM_EXIT_MMIO, ..Default::default() };
        run.__bindgen_anon_1.mmio = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6 {
            phys_addr: 0xd000_0050,
            data: [1, 2, 3, 4, 5, 6, 7, 8],
            len: 4,
            is_write: 1,
        };
        let Exit::MmioWrite { address, data } = parse(&mut run) else { panic!("not an MMIO write") };
        assert_eq!((address, data), (0xd000_0050, &[1, 2, 3, 4][..]));
    }
}
