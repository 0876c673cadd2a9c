//! `StartInstances` and `RebootInstances`.
//!
//! A start has three steps: record the transition in the store, which succeeds for only one of several concurrent
//! commands; start the VM; record the result. If a command is killed, `reconcile.rs` completes or undoes its operation.

use std::time::Duration;

use super::capacity::{check_capacity, promised_memory};
use super::error::CloudError;
use super::instances::Instances;
use super::lookup::{get, size_of};
use super::network::{AddressPool, NetworkSpec, Placement};
use super::stop::StateChange;
use super::{Outcome, Warnings, now};
use ec2::metadata::MetadataOptions;
use ec2::state::{Action, InstanceState, StateReason, Transition};
use ec2::{ErrorCode, InstanceId};
use node::host::{Guard, InstanceLock, Machine, Reboot, Source};
use store::InstanceRecord;

/// Timeout for a VMM that is exiting to release the instance's lock.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of `StartInstances` for one instance.
#[derive(Debug)]
pub struct Started {
    pub change: StateChange,
    /// A connection to the VMM. `None` if the instance was starting or running already.
    pub machine: Option<Box<dyn Machine>>,
}

impl Instances<'_> {
    /// Starts a stopped instance. A hibernated instance is resumed, unless `cold` is true.
    pub fn start(&self, id: InstanceId, overcommit: bool, cold: bool) -> Result<Outcome<Started>, CloudError> {
        let mut warnings = Warnings::default();
        let lock = self.lock_to_start(id, &mut warnings)?;
        let started = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, id)?;
            let previous = record.status.state;
            if Action::Start.allowed(id, previous)? == Transition::Already {
                return Ok((previous, record, None));
            }
            let Some(lock) = lock else {
                return Err(id.incorrect_state("stopping", "started").into());
            };
            check_capacity(self.cloud.node(), &size_of(&record)?, 1, promised_memory(tx)?, overcommit)?;
            // If this command is killed, the end of the last machine must not decide what becomes of the instance.
            self.cloud.node.instances().forget_end(id)?;
            record.status.state = InstanceState::Pending;
            record.clear_reason();
            record.status.launch_time = now();
            // Instances created by a version without networking get a network interface now.
            let spec = NetworkSpec::default();
            let mut network = match record.status.network.take() {
                Some(network) => network,
                None => Placement::choose(tx, self.cloud.node(), &spec)?.interface(&spec, MetadataOptions::default()),
            };
            AddressPool::taken(tx, self.cloud.node())?.give(&mut network)?;
            record.status.network = Some(network);
            tx.put(&mut record)?;
            Ok((previous, record, Some(lock)))
        })?;
        let (previous, record, Some(lock)) = started else {
            let change = StateChange { instance: id, previous: started.0, current: started.0 };
            return Ok(Outcome { value: Started { change, machine: None }, warnings });
        };
        match self.start_machine(&record, lock, cold) {
            Ok(Outcome { value: machine, warnings: of_start }) => {
                self.settle_running(&[id])?;
                warnings.extend(of_start);
                let change = StateChange { instance: id, previous, current: InstanceState::Pending };
                Ok(Outcome { value: Started { change, machine: Some(machine) }, warnings })
            }
            Err(error) => {
                // If the restore failed before the guest ran, the snapshot still exists: the instance stays hibernated.
                let is_hibernated = self.cloud.node.instances().hibernated(id).is_some();
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
    fn lock_to_start(&self, id: InstanceId, warnings: &mut Warnings) -> Result<Option<Guard>, CloudError> {
        let instances = self.cloud.node.instances();
        match self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?.status.state {
            // An exiting VMM may hold the lock for a moment longer.
            InstanceState::Stopped => Ok(instances.lock(id, RESTART_TIMEOUT)?.taken()),
            // A VMM that is being killed does not respond, but holds the lock for a moment longer.
            InstanceState::Running if !instances.is_running(id)? => {
                let InstanceLock::Taken(lock) = instances.lock(id, RESTART_TIMEOUT)? else { return Ok(None) };
                drop(lock);
                self.reconcile_instance(id, warnings)?;
                Ok(instances.lock(id, RESTART_TIMEOUT)?.taken())
            }
            InstanceState::Running => Ok(None),
            _ => Ok(instances.lock(id, Duration::ZERO)?.taken()),
        }
    }

    /// Returns the error to report for an operation on a running instance that failed with `error`. If the instance has
    /// ended meanwhile, its record is updated and the error says so. `event` is a clause, such as "it was rebooted".
    pub(super) fn unless_ended(&self, id: InstanceId, event: &str, error: impl Into<CloudError>) -> CloudError {
        let error = error.into();
        if !error.is_lost_vmm() {
            return error;
        }
        match self.cloud.node.instances().is_running(id) {
            Ok(true) => error,
            Ok(false) => self.ended_before(id, event).unwrap_or_else(|other| other),
            Err(other) => other.into(),
        }
    }

    /// Returns an instance's state after its guest ended. Waits for the VMM to exit or, after a reboot, for the next
    /// VMM, and reconciles the record.
    pub fn state_after_guest_end(&self, id: InstanceId) -> Result<InstanceState, CloudError> {
        let instances = self.cloud.node.instances();
        instances.await_guest_end(id);
        if !instances.is_running(id)? {
            self.settle_ended(id)?;
        }
        self.cloud.store.read::<_, CloudError>(|tx| Ok(get(tx, id)?.status.state))
    }

    /// Reconciles the record of an instance that has ended. The caller reports the new state, so the warnings are only
    /// logged.
    fn settle_ended(&self, id: InstanceId) -> Result<(), CloudError> {
        let mut warnings = Warnings::default();
        let settled = self.reconcile_instance(id, &mut warnings);
        warnings.into_iter().for_each(|warning| log::info!("{warning}"));
        settled
    }

    /// Returns the error for an instance that ended before `event`, a clause such as "it was rebooted".
    fn ended_before(&self, id: InstanceId, event: &str) -> Result<CloudError, CloudError> {
        self.settle_ended(id)?;
        let state = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?.status.state;
        let what = format!("The instance '{id}' ended before {event}. It is now {state}.");
        let hint = (state == InstanceState::Stopped).then(|| format!("Start it again with `wisp start {id}`."));
        Ok(CloudError::refused(ErrorCode::IncorrectInstanceState, what, hint))
    }

    fn start_machine(
        &self,
        record: &InstanceRecord,
        lock: Guard,
        cold: bool,
    ) -> Result<Outcome<Box<dyn Machine>>, CloudError> {
        let instances = self.cloud.node.instances();
        if cold || instances.hibernated(record.meta.id).is_none() {
            instances.forget_hibernated(record.meta.id)?;
        }
        let image = self.cloud.images().open_by_id(record.spec.image_id)?;
        let source = instances.hibernated(record.meta.id).map_or(Source::Boot, Source::Hibernated);
        let plan = self.plan_start(record, lock, &image, &self.cloud.volumes().of(record)?, source);
        Ok(self.start_all([plan])?.map(|mut machines| machines.remove(0)))
    }

    /// Reboots a running instance, and returns a connection to its new VMM as soon as that listens.
    pub fn reboot(&self, id: InstanceId) -> Result<Box<dyn Machine>, CloudError> {
        let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
        Action::Reboot.allowed(id, record.status.state)?;
        match self.cloud.node.instances().reboot(id) {
            Ok(Reboot::Restarted(machine)) => Ok(machine),
            Ok(Reboot::Ended) => Err(self.ended_before(id, "it was rebooted")?),
            Ok(Reboot::TimedOut(timeout)) => {
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
