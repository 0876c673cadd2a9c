//! A vCPU: a named thread that runs the guest and dispatches its device accesses.
//!
//! A kick is a signal. Its handler sets `immediate_exit` in the thread's own `kvm_run`, so that a signal that arrives
//! just before KVM_RUN is not lost (api.rst, "KVM_SET_SIGNAL_MASK").

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use super::emulation;
use super::exit::{self, EmulationFailure, Exit, SystemEvent};
use super::gate::Gate;
use super::quota::Quota;
use super::registers;
use super::state::{self, VcpuState};
use super::time::CpuTime;
use super::xstate::{self, Xstate};
use crate::bus::Bus;
use crate::error::Error;
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;
use crate::sandbox::calls::ThreadKind;
use crate::sandbox::threads;
use crate::signals::kick_signal;
use crate::snapshot::processor::CpuIdentity;
use machine::end::{End, EndSender, KvmFailure};
use machine::limits::CpuBudgetRecord;
use machine::timeline::{ExitCounters, Mark, Timeline};

#[derive(Debug)]
pub struct VcpuContext {
    pub ports: Bus,
    pub mmio: Bus,
    pub memory: GuestMemory,
    /// True if KVM emulates guest kernels on this host.
    pub software_kvm: bool,
    /// The extended states that the guest's kernel saves through I/O ports; `None` except on software KVM.
    pub xstate: Option<Xstate>,
    pub xstate_faults: Arc<GuestFaults>,
    pub exits: Arc<ExitCounters>,
    pub cpu_time: CpuTime,
    pub quota: Option<Quota>,
    pub timeline: Arc<Timeline>,
    pub ends: EndSender,
    /// The gate at which vCPUs wait while the machine is paused or a vCPU is throttled.
    pub gate: Gate,
    pub saved_msrs: Vec<u32>,
    pub identity: CpuIdentity,
}

impl VcpuContext {
    /// Allows or forbids surplus credits. Returns false if the machine's CPU time is not limited.
    pub fn set_can_owe(&self, can_owe: bool) -> bool {
        self.quota.as_ref().map(|quota| quota.set_can_owe(can_owe, &self.cpu_time, &self.gate)).is_some()
    }

    pub fn cpu_budget(&self) -> Option<CpuBudgetRecord> {
        self.quota.as_ref().map(|quota| quota.record(&self.cpu_time))
    }
}

#[derive(Debug)]
pub struct VcpuHandle {
    thread: JoinHandle<()>,
}

thread_local! {
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = KVM_RUN.with(Cell::get);
    if !run.is_null() {
        // SAFETY: the pointer is this thread's own `kvm_run`, mapped for as long as it is set; the field is a byte
        // that KVM reads once for each KVM_RUN.
        unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
    }
}

/// Must be called once per process, before any vCPU runs.
pub fn install_kick_handler() -> Result<(), Error> {
    vmm_sys_util::signal::register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| Error::Host { what: "install a signal handler", source: error.into() })
}

impl VcpuHandle {
    pub fn spawn(id: u32, fd: VcpuFd, context: Arc<VcpuContext>) -> Result<VcpuHandle, Error> {
        let run = move || Vcpu { id, fd, context }.run();
        let thread =
            threads::spawn(format!("vcpu{id}"), ThreadKind::Vcpu, run).map_err(Error::host("start a vCPU thread"))?;
        Ok(VcpuHandle { thread })
    }

    /// Interrupts the guest, so that the vCPU checks [`VcpuContext::gate`].
    pub fn kick(&self) {
        // SAFETY: the thread has not been joined, so its ID is valid; the signal has a handler.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    pub fn join(self) {
        if self.thread.join().is_err() {
            log::error!("a vCPU thread panicked");
        }
    }
}

struct Vcpu {
    id: u32,
    fd: VcpuFd,
    context: Arc<VcpuContext>,
}

enum Next {
    Run,
    /// A kick interrupted KVM_RUN before the guest caused an exit.
    Kicked,
    Leave(Option<End>),
}

impl Vcpu {
    fn run(mut self) {
        KVM_RUN.with(|run| run.set(self.fd.get_kvm_run()));
        let context = Arc::clone(&self.context);
        let _counted = context.cpu_time.count_this_thread(self.id);
        if self.id == 0 {
            self.context.timeline.mark(Mark::FirstInstruction);
        }
        let allowance = context.quota.as_ref().and_then(|quota| quota.allow_this_thread(&context.cpu_time));
        // True if the slice may have ended, because a kick may have come from the slice timer.
        let mut is_due = true;
        let end = loop {
            if self.context.gate.is_closed() {
                if let Some(end) = self.finish_exit() {
                    break end;
                }
                if !context.gate.wait(self.id, || VcpuState::save(&self.fd, &context.saved_msrs)) {
                    break None;
                }
                state::notify_of_pause(&self.fd);
                is_due = true;
                continue;
            }
            if let Some(allowance) = &allowance
                && is_due
                && !allowance.next_slice(&context.gate)
            {
                continue;
            }
            is_due = match self.step() {
                Next::Leave(end) => break end,
                Next::Kicked => true,
                Next::Run => false,
            };
        };
        context.gate.leave();
        KVM_RUN.with(|run| run.set(ptr::null_mut()));
        if let Some(end) = end {
            self.context.ends.send(end);
        }
    }

    /// Completes the last exit. Returns `Some` if the thread must end, with the machine's end if the exit causes it.
    /// KVM applies an exit's result when the vCPU is entered again; with `immediate_exit` set, no guest code runs then.
    fn finish_exit(&mut self) -> Option<Option<End>> {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            match self.step() {
                Next::Kicked => return None,
                // One access can cause several exits.
                Next::Run => {}
                Next::Leave(end) => return Some(end),
            }
        }
    }

    fn step(&mut self) -> Next {
        let context = Arc::clone(&self.context);
        let exit = match exit::run(&mut self.fd) {
            Ok(exit) => exit,
            Err(error) => return self.fail(format!("KVM_RUN failed: {error}"), &[]),
        };
        context.exits.count(exit.kind());
        match exit {
            Exit::PortRead { port: xstate::FEATURES_PORT, size: 4, data } if context.xstate.is_some() => {
                let features = context.xstate.map_or(u32::MAX, |xstate| xstate.features());
                data.chunks_mut(4).for_each(|access| access.copy_from_slice(&features.to_le_bytes()));
                Next::Run
            }
            Exit::PortWrite { port: port @ (xstate::SAVE_PORT | xstate::RESTORE_PORT), size: 4, data } => {
                let value = data.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                self.keep_xstate(port, value);
                Next::Run
            }
            Exit::PortRead { port, size, data } => {
                data.chunks_mut(size).for_each(|access| context.ports.read(u64::from(port), access));
                Next::Run
            }
            Exit::PortWrite { port, size, data } => {
                data.chunks(size).for_each(|access| context.ports.write(u64::from(port), access));
                Next::Run
            }
            Exit::MmioRead { address, data } => {
                context.mmio.read(address, data);
                Next::Run
            }
            Exit::MmioWrite { address, data } => {
                context.mmio.write(address, data);
                Next::Run
            }
            Exit::Interrupted => {
                self.fd.set_kvm_immediate_exit(0);
                self.trace_position();
                Next::Kicked
            }
            Exit::Halt => Next::Run,
            Exit::Shutdown | Exit::SystemEvent(SystemEvent::Crash) => Next::Leave(Some(End::TripleFault)),
            Exit::SystemEvent(SystemEvent::Reset) => Next::Leave(Some(End::Reboot)),
            Exit::SystemEvent(SystemEvent::Shutdown) => Next::Leave(Some(End::PowerOff)),
            Exit::SystemEvent(SystemEvent::Other(kind)) => {
                self.fail(format!("KVM reported unexpected system event {kind}"), &[])
            }
            Exit::EmulationFailure(failure) => self.emulation_failure(&failure),
            Exit::InternalError { suberror, data } => {
                self.fail(format!("KVM internal error {suberror}, data {data:x?}"), &[])
            }
            Exit::EntryFailure { reason } => {
                self.fail(format!("VM entry failed with hardware reason {reason:#x}"), &[])
            }
            Exit::Unexpected { reason } => self.fail(format!("unexpected KVM exit reason {reason}"), &[]),
        }
    }

    /// Logs the instruction pointer after a kick, at log level `trace`. With repeated kicks, this profiles the guest.
    fn trace_position(&self) {
        if log::log_enabled!(log::Level::Trace)
            && let Ok(regs) = self.fd.get_regs()
        {
            log::trace!("vcpu{} at {:#x}", self.id, regs.rip);
        }
    }

    fn keep_xstate(&self, port: u16, value: u32) {
        if let Some(xstate) = &self.context.xstate
            && let Err(error) = xstate.write(&self.fd, &self.context.memory, port, value)
        {
            self.context.xstate_faults.record(&error);
        }
    }

    fn emulation_failure(&mut self, failure: &EmulationFailure) -> Next {
        let context = &self.context;
        if context.software_kvm {
            match emulation::assist(&self.fd, &context.memory, failure) {
                Ok(true) => return Next::Run,
                Ok(false) => {}
                Err(error) => {
                    let message = format!("cannot step past an instruction that KVM could not emulate: {error}");
                    return self.fail(message, &[]);
                }
            }
        }
        let (rip, bytes) = match self.fd.get_regs() {
            Ok(regs) => (regs.rip, emulation::instruction_bytes(&self.fd, &context.memory, &regs, failure)),
            Err(_) => (0, failure.instruction_bytes.clone()),
        };
        self.fail(emulation::describe(rip, &bytes, context.software_kvm), &bytes)
    }

    fn fail(&self, message: String, bytes: &[u8]) -> Next {
        let registers = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => registers::describe(&regs, &sregs),
            (Err(error), _) | (_, Err(error)) => format!("cannot read the registers: {error}"),
        };
        let instruction_bytes = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        Next::Leave(Some(End::KvmError(KvmFailure { vcpu: self.id, message, instruction_bytes, registers })))
    }
}
