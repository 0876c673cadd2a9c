//! Ends the machines of instances: orderly, by force, or with a snapshot (hibernation).

use std::time::Duration;

use crate::host::{Ended, Guard, StopMode};
use crate::instance::{Awaited, Failure, InstanceDir, MachineError, MachineHandle};
use crate::{probe, vmm_process};
use machine::control::ControlRequest;

const AGENT_TIMEOUT: Duration = Duration::from_secs(20);
const FORCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a supervisor to start the next VMM of a rebooting guest, or to exit.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a VMM to open its control socket before it is stopped. Another command may be starting the VMM.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of attempts to reach, stop or kill an instance's VMM, which a guest reboot replaces.
const ATTEMPTS: usize = 3;
/// Timeouts for a guest to power off or reboot after a request to its agent: with hardware KVM, and with software KVM.
const SHUTDOWN_TIMEOUTS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];
/// Likewise, for a guest to power off after Ctrl-Alt-Del. After that, its VM is killed.
const CTRL_ALT_DEL_TIMEOUTS: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(60)];
/// Timeout for a guest to power off after its agent has ended.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(15);

impl InstanceDir {
    /// Ends the VM, and takes the instance's lock.
    pub(super) fn end_machine(&self, mode: StopMode) -> Result<Ended, MachineError> {
        self.unless_gone(end_machine(self, mode))
    }

    /// Returns true if a VMM is running, and false if the instance has ended.
    pub(super) fn answers(&self) -> Result<bool, MachineError> {
        self.unless_gone(answers(self))
    }

    /// Waits until the VM of a guest that is about to power off or reboot has ended.
    pub(super) fn await_guest_end(&self) {
        // The agent ends before its guest powers off. An error means that the VMM is exiting.
        let _ = MachineHandle::connect(self).and_then(|mut machine| {
            machine.subscribe()?;
            machine.wait_ended(POWER_OFF_TIMEOUT)
        });
    }

    /// Reboots the guest, and waits for the next VMM. Also returns the timeout.
    pub(super) fn reboot(&self) -> Result<(Awaited, Duration), MachineError> {
        let timeout = SHUTDOWN_TIMEOUTS[usize::from(probe::is_software_kvm())];
        let awaited = self.reboot_by(timeout, || {
            let asked = self
                .agent(AGENT_TIMEOUT)
                .and_then(|agent| agent.shutdown(true, AGENT_TIMEOUT).map_err(self.guest_error()));
            let Err(error) = asked else { return Ok(()) };
            let id = self.id();
            log::info!("{id}: the agent did not reboot the guest ({error}); pressing Ctrl-Alt-Del");
            MachineHandle::connect(self)?.demand(&ControlRequest::CtrlAltDel)
        })?;
        Ok((awaited, timeout))
    }
}

/// Ends the VM, but fails if the directory does not exist.
fn end_machine(dir: &InstanceDir, mode: StopMode) -> Result<Ended, MachineError> {
    if let Some(lock) = dir.try_lock()? {
        return Ok(Ended { lock: Some(Guard::new(lock)), warning: None });
    }
    if mode == StopMode::Force {
        return force(dir);
    }
    let mut warning = None;
    if mode == StopMode::Hibernate
        && let Err(error) = MachineHandle::connect(dir).and_then(|mut machine| {
            machine.subscribe()?;
            dir.hibernate(&mut machine)
        })
    {
        warning = Some(format!(
            "{}: hibernation failed, so the instance was stopped without saving its memory: {error}",
            dir.id()
        ));
    }
    for _ in 0..ATTEMPTS {
        let mut machine = match dir.await_vmm(LISTEN_TIMEOUT)? {
            Awaited::Ended(lock) => return Ok(Ended { lock: Some(Guard::new(lock)), warning }),
            Awaited::Listening(machine) => machine,
            Awaited::TimedOut => {
                let why = format!("the VMM did not open its control socket within {} s", LISTEN_TIMEOUT.as_secs());
                return Err(dir.error(Failure::NotDone(why)));
            }
        };
        match end_by(&mut machine, dir) {
            // The lock becomes free within moments, unless another command has started the instance again.
            Ok(true) => {
                if let Some(lock) = dir.lock_within(FORCE_TIMEOUT)? {
                    return Ok(Ended { lock: Some(Guard::new(lock)), warning });
                }
            }
            Ok(false) => break,
            Err(MachineError { failure: Failure::Control(source), .. }) if !source.is_timeout() => {}
            Err(error) => return Err(error),
        }
    }
    // The VM did not end, or each attempt met an exiting VMM, because the guest reboots in a loop.
    let mut ended = force(dir)?;
    ended.warning = warning.or(ended.warning);
    Ok(ended)
}

fn force(dir: &InstanceDir) -> Result<Ended, MachineError> {
    let mut warning = None;
    // Another command may hold the lock and be starting the VMM, so each attempt looks for the VMM again.
    for _ in 0..ATTEMPTS {
        // A failure can be ignored: the VMM is exiting, or is killed below.
        let _ = MachineHandle::connect(dir).and_then(|mut machine| machine.kill("wisp"));
        if let Some(lock) = dir.lock_within(FORCE_TIMEOUT)? {
            return Ok(Ended { lock: Some(Guard::new(lock)), warning });
        }
        warning = Some(format!("{}: killed the VMM because it did not respond.", dir.id()));
        vmm_process::kill(dir.path()).map_err(MachineError::file(dir.path(), "kill the VMM in"))?;
        if let Some(lock) = dir.lock_within(FORCE_TIMEOUT)? {
            return Ok(Ended { lock: Some(Guard::new(lock)), warning });
        }
    }
    let why = "the VMM was killed but has not exited".to_string();
    Err(dir.error(Failure::NotDone(why)))
}

/// Returns true if a VMM is running, and false if the instance has ended.
fn answers(dir: &InstanceDir) -> Result<bool, MachineError> {
    for _ in 0..ATTEMPTS {
        let mut machine = match dir.await_vmm(RESTART_TIMEOUT)? {
            Awaited::Ended(_) => return Ok(false),
            Awaited::Listening(machine) => machine,
            Awaited::TimedOut => return Ok(true),
        };
        match machine.status_within(RESTART_TIMEOUT) {
            // The connected VMM was exiting. Check whether another one follows it.
            Err(MachineError { failure: Failure::Control(source), .. }) if source.is_gone() => {}
            // The VMM responded, or it is slow but still running.
            _ => return Ok(true),
        }
    }
    Ok(true)
}

/// Shuts the guest down, and kills the VM after the timeouts. Returns true if the VM has ended.
fn end_by(machine: &mut MachineHandle, dir: &InstanceDir) -> Result<bool, MachineError> {
    machine.subscribe()?;
    machine.demand(&ControlRequest::EndAtReboot)?;
    let slow = usize::from(probe::is_software_kvm());
    let asked = dir.agent(AGENT_TIMEOUT).map(|agent| agent.shutdown(false, AGENT_TIMEOUT).is_ok());
    if asked.unwrap_or(false) && machine.wait_ended(SHUTDOWN_TIMEOUTS[slow])? {
        return Ok(true);
    }
    match machine.demand(&ControlRequest::CtrlAltDel) {
        Ok(()) => {
            if machine.wait_ended(CTRL_ALT_DEL_TIMEOUTS[slow])? {
                return Ok(true);
            }
        }
        // The VMM refuses this if the guest has no keyboard driver.
        Err(MachineError { failure: Failure::Refused(_), .. }) => {}
        Err(error) => return Err(error),
    }
    machine.kill("wisp")?;
    machine.wait_ended(FORCE_TIMEOUT)
}
