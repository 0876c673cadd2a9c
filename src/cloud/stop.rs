//! `StopInstances` and `TerminateInstances`.
//!
//! Each operation has three steps: record the transition in the store, which succeeds for only one of several
//! concurrent commands; end the VM; record the result. If a command is killed, `reconcile.rs` completes or undoes its
//! operation.

use super::error::CloudError;
use super::instances::Instances;
use super::lookup::get;
use super::network::{free_addresses_of, take_public_address};
use super::{Outcome, Warnings, now, utc};
use ec2::state::{Action, InstanceState, StateReason, Transition};
use ec2::volume::VolumeState;
use ec2::{ErrorCode, InstanceId};
use node::error::NodeError;
use node::host::{Ended, Guard, StopMode};
use store::{InstanceRecord, StoreError, VolumeRecord};

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
    _locks: Vec<Guard>,
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
    pub fn terminate_damaged(&self, references: &[String]) -> Result<Outcome<Vec<String>>, CloudError> {
        let (mut others, mut warnings) = (Vec::new(), Warnings::default());
        for reference in references {
            let Ok(id) = reference.parse::<InstanceId>() else {
                others.push(reference.clone());
                continue;
            };
            match self.cloud.store.read::<_, StoreError>(|tx| tx.get::<InstanceRecord>(reference)) {
                Err(StoreError::Record { .. }) => {
                    self.terminate_without_record(id)?;
                    let what = "the record was damaged; the instance was terminated and the record removed.";
                    warnings.push(format!("{id}: {what}"));
                }
                _ => others.push(reference.clone()),
            }
        }
        Ok(Outcome { value: others, warnings })
    }

    fn terminate_without_record(&self, id: InstanceId) -> Result<(), CloudError> {
        let _ended = self.cloud.node.instances().end(id, StopMode::Force)?;
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
        self.cloud.node.instances().remove(id)?;
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
            locks.extend(self.cloud.node.instances().lock_operation(*id)?);
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
    /// The warnings count even if another instance cannot be stopped.
    pub fn finish_stop(&self, operation: StopOperation, mode: StopMode) -> Outcome<Result<(), CloudError>> {
        let settle = |instances: &Instances, id| {
            let hibernated = instances.cloud.node.instances().hibernated(id).is_some();
            let reason = if hibernated { StateReason::user_hibernated() } else { StateReason::user_initiated() };
            instances.settle_stopped(id, &reason)
        };
        let mut warnings = Warnings::default();
        let value = self.finish(&operation.pending(), mode, settle, &mut warnings);
        Outcome { value, warnings }
    }

    /// Terminates the instances in parallel. The warnings count even if one cannot be terminated.
    pub fn finish_terminate(&self, operation: StopOperation) -> Outcome<Result<(), CloudError>> {
        let mut warnings = Warnings::default();
        let value = self.terminate_pending(&operation, &mut warnings);
        Outcome { value, warnings }
    }

    fn terminate_pending(&self, operation: &StopOperation, warnings: &mut Warnings) -> Result<(), CloudError> {
        let (mut forced, mut orderly) = (Vec::new(), Vec::new());
        for id in operation.pending() {
            let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
            // If a volume outlives the instance, the guest gets a chance to write its dirty pages.
            let outlived = record.status.block_devices.iter().any(|device| !device.delete_on_termination);
            if outlived { orderly.push(id) } else { forced.push(id) }
        }
        let settle = |instances: &Instances, id| instances.settle_terminated(id, &StateReason::user_initiated());
        self.finish(&forced, StopMode::Force, settle, warnings)?;
        self.finish(&orderly, StopMode::Orderly, settle, warnings)
    }

    fn finish(
        &self,
        ids: &[InstanceId],
        mode: StopMode,
        settle: impl Fn(&Instances, InstanceId) -> Result<(), CloudError>,
        warnings: &mut Warnings,
    ) -> Result<(), CloudError> {
        let instances = self.cloud.node.instances();
        let results: Vec<Result<Ended, NodeError>> = std::thread::scope(|scope| {
            let ends: Vec<_> = ids.iter().map(|id| scope.spawn(move || instances.end(*id, mode))).collect();
            let ended = ends.into_iter().map(|end| end.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect()
        });
        let mut first_error = None;
        for (id, result) in ids.iter().zip(results) {
            // `ended` holds the lock until the store has the result.
            let outcome = result.map_err(CloudError::from).and_then(|ended| {
                warnings.extend(ended.warning);
                settle(self, *id)
            });
            if let Err(error) = outcome {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    pub(super) fn end_and_terminate(&self, id: InstanceId, reason: &StateReason) -> Result<(), CloudError> {
        let _ended = self.cloud.node.instances().end(id, StopMode::Force)?;
        self.settle_terminated(id, reason)
    }

    /// Marks an instance as stopped. Its volumes stay attached; its instance-store disks are removed.
    pub(super) fn settle_stopped(&self, id: InstanceId, reason: &StateReason) -> Result<(), CloudError> {
        self.cloud.node.instances().clear_stopped(id)?;
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
        self.cloud.node.instances().remove(id)?;
        self.cloud.sweep().volumes();
        Ok(())
    }
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
