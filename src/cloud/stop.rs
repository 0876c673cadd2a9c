//! `StopInstances` and `TerminateInstances`.
//!
//! Each operation has three steps: record the transition in the store, which succeeds for only one of several
//! concurrent commands; end the VM; record the result. If a command is killed, `reconcile.rs` completes or undoes its
//! operation.

use std::fs::File;
use std::time::Duration;

use super::error::CloudError;
use super::instances::Instances;
use super::lookup::get;
use super::network::{free_addresses_of, take_public_address};
use super::{now, utc};
use ec2::state::{Action, InstanceState, StateReason, Transition};
use ec2::volume::VolumeState;
use ec2::{ErrorCode, InstanceId};
use machine::control;
use node::instance::{Awaited, Failure, InstanceDir, MachineError, MachineHandle};
use node::{probe, vmm_process};
use store::{InstanceRecord, StoreError, VolumeRecord};

pub(super) const AGENT_TIMEOUT: Duration = Duration::from_secs(20);
const FORCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a supervisor to start the next VMM of a rebooting guest, or to exit.
pub(super) const RESTART_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a VMM to open its control socket before it is stopped. Another command may be starting the VMM.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of attempts to reach, stop or kill an instance's VMM, which a guest reboot replaces.
const ATTEMPTS: usize = 3;
/// Timeouts for a guest to power off or reboot after a request to its agent: with hardware KVM, and with software KVM.
pub(super) const SHUTDOWN_TIMEOUTS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];
/// Likewise, for a guest to power off after Ctrl-Alt-Del. After that, its VM is killed.
const CTRL_ALT_DEL_TIMEOUTS: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(60)];

/// The state of an instance before and after a command (EC2 API Reference, `InstanceStateChange`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    pub instance: InstanceId,
    pub previous: InstanceState,
    pub current: InstanceState,
}

/// Instances that this command is stopping or terminating.
#[derive(Debug)]
pub struct StopOperation {
    pub changes: Vec<StateChange>,
    _locks: Vec<File>,
}

impl StopOperation {
    fn pending(&self) -> Vec<InstanceId> {
        let pending = |change: &&StateChange| change.current.has_machine();
        self.changes.iter().filter(pending).map(|change| change.instance).collect()
    }
}

impl Instances<'_> {
    pub fn begin_stop(&self, ids: &[InstanceId]) -> Result<StopOperation, CloudError> {
        self.begin(ids, Action::Stop, InstanceState::Stopping)
    }

    /// Terminates the instances with damaged records and returns the other references. The name in a damaged record is
    /// unreadable, so only the full instance ID matches it.
    pub fn terminate_damaged(&self, references: &[String]) -> Result<Vec<String>, CloudError> {
        let mut others = Vec::new();
        for reference in references {
            let Ok(id) = reference.parse::<InstanceId>() else {
                others.push(reference.clone());
                continue;
            };
            match self.cloud.store.read::<_, StoreError>(|tx| tx.get::<InstanceRecord>(reference)) {
                Err(StoreError::Record { .. }) => {
                    self.terminate_without_record(id)?;
                    let what = "the record was damaged; the instance was terminated and the record removed.";
                    self.cloud.warn(format!("{id}: {what}"));
                }
                _ => others.push(reference.clone()),
            }
        }
        Ok(others)
    }

    fn terminate_without_record(&self, id: InstanceId) -> Result<(), CloudError> {
        let _ended = end_machine(&self.cloud.dir(id), StopMode::Force)?;
        self.cloud.store.write::<_, CloudError>(|tx| {
            for mut volume in tx.list::<VolumeRecord>()? {
                match &volume.status.attachment {
                    Some(attachment) if attachment.instance_id == id => {}
                    _ => continue,
                }
                if volume.status.attachment.take().is_some_and(|attachment| attachment.delete_on_termination) {
                    tx.remove::<VolumeRecord>(&volume.meta.id.to_string())?;
                } else {
                    volume.status.state = VolumeState::Available;
                    tx.put(&mut volume)?;
                }
            }
            free_addresses_of(tx, id)?;
            tx.forget_usage(id)?;
            Ok(tx.remove::<InstanceRecord>(&id.to_string())?)
        })?;
        self.cloud.dir(id).remove()?;
        self.cloud.sweep().volumes();
        Ok(())
    }

    /// Marks instances as shutting down. Fails without any change if one of them has termination protection.
    pub fn begin_terminate(&self, ids: &[InstanceId]) -> Result<StopOperation, CloudError> {
        self.begin(ids, Action::Terminate, InstanceState::ShuttingDown)
    }

    fn begin(&self, ids: &[InstanceId], action: Action, next: InstanceState) -> Result<StopOperation, CloudError> {
        // Take the locks before changing the state: an instance in the state `stopping` without a lock looks as if its
        // command was killed. If another command holds a lock, that command finishes the operation.
        let mut locks = Vec::new();
        for id in ids {
            let dir = self.cloud.dir(*id);
            locks.extend(dir.unless_gone(dir.try_lock_operation())?);
        }
        let changes = self.cloud.store.write::<_, CloudError>(|tx| {
            if action == Action::Terminate {
                ids.iter().try_for_each(|id| check_unprotected(&get(tx, *id)?))?;
            }
            let mut changes = Vec::new();
            for id in ids {
                let mut record = get(tx, *id)?;
                let previous = record.status.state;
                let current = match action.allowed(*id, previous)? {
                    Transition::Already => previous,
                    Transition::Do => next,
                };
                if current != previous {
                    record.status.state = current;
                    record.status.state_reason = Some(StateReason::user_initiated());
                    record.status.state_transition_reason = format!("User initiated ({})", utc(now()));
                    tx.put(&mut record)?;
                }
                changes.push(StateChange { instance: *id, previous, current });
            }
            Ok(changes)
        })?;
        Ok(StopOperation { changes, _locks: locks })
    }

    /// Stops the instances in parallel. If one cannot hibernate, stops it without saving its memory, and adds a warning.
    pub fn finish_stop(&self, operation: StopOperation, mode: StopMode) -> Result<(), CloudError> {
        let settle = |instances: &Instances, id| {
            let hibernated = instances.cloud.dir(id).is_hibernated();
            let reason = if hibernated { StateReason::user_hibernated() } else { StateReason::user_initiated() };
            instances.settle_stopped(id, &reason)
        };
        self.finish(&operation.pending(), mode, settle)
    }

    pub fn finish_terminate(&self, operation: StopOperation) -> Result<(), CloudError> {
        let (mut forced, mut orderly) = (Vec::new(), Vec::new());
        for id in operation.pending() {
            let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
            // If a volume outlives the instance, the guest gets a chance to write its dirty pages.
            let outlived = record.status.block_devices.iter().any(|device| !device.delete_on_termination);
            if outlived { orderly.push(id) } else { forced.push(id) }
        }
        let settle = |instances: &Instances, id| instances.settle_terminated(id, &StateReason::user_initiated());
        self.finish(&forced, StopMode::Force, settle)?;
        self.finish(&orderly, StopMode::Orderly, settle)
    }

    fn finish(
        &self,
        ids: &[InstanceId],
        mode: StopMode,
        settle: impl Fn(&Instances, InstanceId) -> Result<(), CloudError>,
    ) -> Result<(), CloudError> {
        let dirs: Vec<InstanceDir> = ids.iter().map(|id| self.cloud.dir(*id)).collect();
        let results: Vec<Result<Ended, MachineError>> = std::thread::scope(|scope| {
            let ends: Vec<_> = dirs.iter().map(|dir| scope.spawn(move || end_machine(dir, mode))).collect();
            ends.into_iter().map(|end| end.join().expect("ending a machine does not panic")).collect()
        });
        let mut first_error = None;
        for (id, result) in ids.iter().zip(results) {
            // `ended` holds the lock until the store has the result.
            let outcome = result.map_err(CloudError::from).and_then(|ended| {
                self.cloud.warnings.borrow_mut().extend(ended.warning);
                settle(self, *id)
            });
            if let Err(error) = outcome {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    pub(super) fn end_and_terminate(&self, id: InstanceId, reason: &StateReason) -> Result<(), CloudError> {
        let _ended = end_machine(&self.cloud.dir(id), StopMode::Force)?;
        self.settle_terminated(id, reason)
    }

    /// Marks an instance as stopped. Its volumes stay attached; its instance-store disks are removed.
    pub(super) fn settle_stopped(&self, id: InstanceId, reason: &StateReason) -> Result<(), CloudError> {
        let dir = self.cloud.dir(id);
        dir.remove_instance_store()?;
        if !dir.is_hibernated() {
            dir.forget_hibernated()?;
        }
        let kept = self.kept_credits(id);
        self.cloud.metering().keep(id);
        self.cloud.store.write(|tx| {
            let mut record = get(tx, id)?;
            if record.status.state.can_become(InstanceState::Stopped) {
                record.status.state = InstanceState::Stopped;
                record.status.credits = kept.or(record.status.credits);
                take_public_address(&mut record);
                note_reason(&mut record, reason);
                tx.put(&mut record)?;
            }
            Ok(())
        })
    }

    /// Marks an instance as terminated, and deletes or detaches its volumes. Its record is kept for an hour.
    pub(super) fn settle_terminated(&self, id: InstanceId, reason: &StateReason) -> Result<(), CloudError> {
        self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, id)?;
            if record.status.state == InstanceState::Terminated {
                return Ok(());
            }
            for device in &record.status.block_devices {
                let mut volume = match tx.get::<VolumeRecord>(&device.volume_id.to_string()) {
                    Ok(Some(volume)) => volume,
                    // An unreadable record is reported when volumes are listed. Its file is kept.
                    Ok(None) | Err(StoreError::Record { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                if volume.status.attachment.as_ref().is_some_and(|attachment| attachment.delete_on_termination) {
                    tx.remove::<VolumeRecord>(&volume.meta.id.to_string())?;
                } else {
                    volume.status.attachment = None;
                    volume.status.state = VolumeState::Available;
                    tx.put(&mut volume)?;
                }
            }
            record.status.state = InstanceState::Terminated;
            record.status.network = None;
            free_addresses_of(tx, id)?;
            record.status.terminated = Some(now());
            record.status.block_devices.clear();
            tx.forget_usage(id)?;
            note_reason(&mut record, reason);
            Ok(tx.put(&mut record)?)
        })?;
        self.cloud.dir(id).remove()?;
        self.cloud.sweep().volumes();
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Save the guest's state for a later resume. If that fails, shut down as with `Orderly`.
    Hibernate,
    /// Ask the agent to power off, then press Ctrl-Alt-Del, then kill the VM.
    Orderly,
    Force,
}

#[derive(Debug, Default)]
struct Ended {
    /// `None` if the instance's directory was removed.
    _lock: Option<File>,
    warning: Option<String>,
}

fn end_machine(dir: &InstanceDir, mode: StopMode) -> Result<Ended, MachineError> {
    dir.unless_gone(end_machine_in(dir, mode))
}

/// Ends the VM like [`end_machine`], but fails if the directory does not exist.
fn end_machine_in(dir: &InstanceDir, mode: StopMode) -> Result<Ended, MachineError> {
    if let Some(lock) = dir.try_lock()? {
        return Ok(Ended { _lock: Some(lock), warning: None });
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
            Awaited::Ended(lock) => return Ok(Ended { _lock: Some(lock), warning }),
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
                    return Ok(Ended { _lock: Some(lock), warning });
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
            return Ok(Ended { _lock: Some(lock), warning });
        }
        warning = Some(format!("{}: killed the VMM because it did not respond.", dir.id()));
        vmm_process::kill(dir.path()).map_err(MachineError::file(dir.path(), "kill the VMM in"))?;
        if let Some(lock) = dir.lock_within(FORCE_TIMEOUT)? {
            return Ok(Ended { _lock: Some(lock), warning });
        }
    }
    let why = "the VMM was killed but has not exited".to_string();
    Err(dir.error(Failure::NotDone(why)))
}

/// Returns true if a VMM is running, and false if the instance has ended.
pub(super) fn answers(dir: &InstanceDir) -> Result<bool, MachineError> {
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
    machine.demand(&control::ControlRequest::EndAtReboot)?;
    let slow = usize::from(probe::is_software_kvm());
    let asked = dir.agent(AGENT_TIMEOUT).map(|agent| agent.shutdown(false, AGENT_TIMEOUT).is_ok());
    if asked.unwrap_or(false) && machine.wait_ended(SHUTDOWN_TIMEOUTS[slow])? {
        return Ok(true);
    }
    match machine.demand(&control::ControlRequest::CtrlAltDel) {
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

fn check_unprotected(record: &InstanceRecord) -> Result<(), CloudError> {
    if !record.spec.termination_protection || record.status.state == InstanceState::Terminated {
        return Ok(());
    }
    let id = record.meta.id;
    Err(CloudError::refused(
        ErrorCode::OperationNotPermitted,
        format!(
            "The instance '{id}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try \
             again."
        ),
        Some(format!("Turn protection off with `wisp modify {id} --no-termination-protection`.")),
    ))
}

fn note_reason(record: &mut InstanceRecord, reason: &StateReason) {
    record.status.state_reason = Some(reason.clone());
    if reason.is_failure() || record.status.state_transition_reason.is_empty() {
        let by = if *reason == StateReason::user_initiated() { "User initiated" } else { reason.code.as_str() };
        record.status.state_transition_reason = format!("{by} ({})", utc(now()));
    }
}
