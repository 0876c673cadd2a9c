//! `StartInstances` and `RebootInstances`.
//!
//! A start has three steps: record the transition in the store, which succeeds for only one of several concurrent
//! commands; start the VM; record the result. If a command is killed, `reconcile.rs` completes or undoes its operation.

use std::fs::File;
use std::time::Duration;

use super::capacity::{check_capacity, promised_memory};
use super::error::CloudError;
use super::instances::Instances;
use super::lookup::{get, size_of};
use super::network::{AddressPool, NetworkSpec, Placement};
use super::now;
use super::start::Source;
use super::stop::{AGENT_TIMEOUT, RESTART_TIMEOUT, SHUTDOWN_TIMEOUTS, StateChange, answers};
use ec2::metadata::MetadataOptions;
use ec2::state::{Action, InstanceState, StateReason, Transition};
use ec2::{ErrorCode, InstanceId};
use machine::control;
use node::instance::{Awaited, InstanceDir, MachineHandle};
use node::probe;
use store::InstanceRecord;

/// Timeout for a guest to power off after its agent has ended.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(15);

impl Instances<'_> {
    /// Starts a stopped instance, and returns a connection to its VMM, or `None` if it is starting or running already.
    /// A hibernated instance is resumed, unless `cold` is true.
    pub fn start(
        &self,
        id: InstanceId,
        overcommit: bool,
        cold: bool,
    ) -> Result<(StateChange, Option<MachineHandle>), CloudError> {
        let dir = self.cloud.dir(id);
        let lock = self.lock_to_start(&dir)?;
        let started = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, id)?;
            let previous = record.status.state;
            if Action::Start.allowed(id, previous)? == Transition::Already {
                return Ok((previous, record, None));
            }
            let Some(lock) = lock else {
                return Err(id.incorrect_state("stopping", "started").into());
            };
            check_capacity(&size_of(&record)?, 1, promised_memory(tx)?, overcommit)?;
            record.status.state = InstanceState::Pending;
            record.clear_reason();
            record.status.launch_time = now();
            // Instances created by a version without networking get a network interface now.
            let spec = NetworkSpec::default();
            let mut network = match record.status.network.take() {
                Some(network) => network,
                None => Placement::choose(tx, &spec)?.interface(&spec, MetadataOptions::default()),
            };
            AddressPool::taken(tx, &self.cloud.home)?.give(&mut network)?;
            record.status.network = Some(network);
            tx.put(&mut record)?;
            Ok((previous, record, Some(lock)))
        })?;
        let (previous, record, Some(lock)) = started else {
            return Ok((StateChange { instance: id, previous: started.0, current: started.0 }, None));
        };
        match self.start_machine(&record, &dir, lock, cold) {
            Ok(machine) => {
                self.settle_running(&[id])?;
                Ok((StateChange { instance: id, previous, current: InstanceState::Pending }, Some(machine)))
            }
            Err(error) => {
                // If the restore failed before the guest ran, the snapshot still exists: the instance stays hibernated.
                let is_hibernated = dir.is_hibernated();
                let reason = match is_hibernated {
                    true => StateReason::user_hibernated(),
                    false => StateReason::internal_error(&error.to_string()),
                };
                self.settle_stopped(id, &reason)?;
                Err(if is_hibernated {
                    CloudError::NotResumed { instance: id, source: Box::new(error) }
                } else {
                    error
                })
            }
        }
    }

    /// Returns the lock of an instance, or `None` if it is running or another command holds the lock.
    fn lock_to_start(&self, dir: &InstanceDir) -> Result<Option<File>, CloudError> {
        match self.cloud.store.read::<_, CloudError>(|tx| get(tx, dir.id()))?.status.state {
            // An exiting VMM may hold the lock for a moment longer.
            InstanceState::Stopped => Ok(dir.unless_gone(dir.lock_within(RESTART_TIMEOUT))?),
            // A VMM that is being killed does not respond, but holds the lock for a moment longer.
            InstanceState::Running if !dir.unless_gone(answers(dir))? => {
                match dir.unless_gone(dir.lock_within(RESTART_TIMEOUT))? {
                    Some(lock) => drop(lock),
                    None => return Ok(None),
                }
                self.reconcile_instance(dir.id())?;
                Ok(dir.unless_gone(dir.lock_within(RESTART_TIMEOUT))?)
            }
            InstanceState::Running => Ok(None),
            _ => Ok(dir.unless_gone(dir.try_lock())?),
        }
    }

    /// Returns the error to report for an operation on a running instance that failed with `error`. If the instance has
    /// ended meanwhile, its record is updated and the error says so. `event` is a clause, such as "it was rebooted".
    pub(super) fn unless_ended(&self, id: InstanceId, event: &str, error: impl Into<CloudError>) -> CloudError {
        let error = error.into();
        if !error.is_lost_vmm() {
            return error;
        }
        let dir = self.cloud.dir(id);
        match dir.unless_gone(answers(&dir)) {
            Ok(true) => error,
            Ok(false) => self.ended_before(id, event).unwrap_or_else(|other| other),
            Err(other) => other.into(),
        }
    }

    /// Returns an instance's state after its guest ended. Waits for the VMM to exit or, after a reboot, for the next
    /// VMM, and reconciles the record.
    pub fn state_after_guest_end(&self, id: InstanceId) -> Result<InstanceState, CloudError> {
        let dir = self.cloud.dir(id);
        // The agent ends before its guest powers off.
        if let Ok(mut machine) = MachineHandle::connect(&dir) {
            // An error means that the VMM is exiting.
            let _ = machine.subscribe().and_then(|()| machine.wait_ended(POWER_OFF_TIMEOUT));
        }
        if !dir.unless_gone(answers(&dir))? {
            self.reconcile_instance(id)?;
        }
        self.cloud.store.read::<_, CloudError>(|tx| Ok(get(tx, id)?.status.state))
    }

    /// Returns the error for an instance that ended before `event`, a clause such as "it was rebooted".
    fn ended_before(&self, id: InstanceId, event: &str) -> Result<CloudError, CloudError> {
        self.reconcile_instance(id)?;
        let state = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?.status.state;
        let what = format!("The instance '{id}' ended before {event}. It is now {state}.");
        let hint = (state == InstanceState::Stopped).then(|| format!("Start it again with `wisp start {id}`."));
        Ok(CloudError::refused(ErrorCode::IncorrectInstanceState, what, hint))
    }

    fn start_machine(
        &self,
        record: &InstanceRecord,
        dir: &InstanceDir,
        lock: File,
        cold: bool,
    ) -> Result<MachineHandle, CloudError> {
        if cold || !dir.is_hibernated() {
            dir.forget_hibernated()?;
        }
        let image = self.cloud.images().open_by_id(record.spec.image_id)?;
        let source = dir.hibernated().map_or(Source::Boot, Source::Hibernated);
        let plan = self.plan_start(record, lock, &image, &self.cloud.volumes().of(record)?, source);
        Ok(self.start_all([plan])?.remove(0))
    }

    /// Reboots a running instance, and returns a connection to its new VMM as soon as that listens.
    pub fn reboot(&self, id: InstanceId) -> Result<MachineHandle, CloudError> {
        let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
        Action::Reboot.allowed(id, record.status.state)?;
        let dir = self.cloud.dir(id);
        let timeout = SHUTDOWN_TIMEOUTS[usize::from(probe::is_software_kvm())];
        let restarted = dir.reboot_by(timeout, || {
            let asked = dir
                .agent(AGENT_TIMEOUT)
                .and_then(|agent| agent.shutdown(true, AGENT_TIMEOUT).map_err(dir.guest_error()));
            let Err(error) = asked else { return Ok(()) };
            log::info!("{id}: the agent did not reboot the guest ({error}); pressing Ctrl-Alt-Del");
            MachineHandle::connect(&dir)?.demand(&control::ControlRequest::CtrlAltDel)
        });
        match restarted {
            Ok(Awaited::Listening(mut machine)) => {
                machine.subscribe().map_err(|error| self.unless_ended(id, "it was rebooted", error))?;
                Ok(*machine)
            }
            Ok(Awaited::Ended(lock)) => {
                drop(lock);
                Err(self.ended_before(id, "it was rebooted")?)
            }
            Ok(Awaited::TimedOut) => {
                let what = format!(
                    "The instance '{id}' did not reboot within {} s. It may still reboot later.",
                    timeout.as_secs()
                );
                let hint = Some(format!("To restart it anyway, run `wisp stop {id}` and `wisp start {id}`."));
                Err(CloudError::refused(ErrorCode::IncorrectInstanceState, what, hint))
            }
            Err(error) => Err(self.unless_ended(id, "it was rebooted", error)),
        }
    }
}
