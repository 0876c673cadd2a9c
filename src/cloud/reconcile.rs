//! Reconciles the store with the running VMMs.
//!
//! Every command that opens a [`Cloud`] does this first. If an instance's lock is free, no VMM is running and no
//! command is about to start one. Only the command that reconciles a difference reports it.

use std::time::Duration;

use super::error::CloudError;
use super::instances::Instances;
use super::launch::TOKEN_LIFETIME;
use super::layers;
use super::lookup::get;
use super::template;
use super::{Warnings, now};
use ec2::InstanceId;
use ec2::state::{InstanceState, ShutdownBehavior, StateReason};
use machine::end::End;
use machine::end_record::EndRecord;
use machine::files::LOG;
use node::host::{HostInstance, InstanceLock};
use store::{
    AddressRecord, ClientToken, ImageRecord, InstanceRecord, KeyPairRecord, SecurityGroupRecord, SnapshotRecord,
    StoreError, SubnetRecord, Transaction, VolumeRecord, VpcRecord,
};

/// Time in seconds for which a terminated instance stays visible.
const TERMINATED_LIFETIME: u64 = 3600;

/// Timeout for a VMM to report its status, and then for an unresponsive VMM to exit.
const END_TIMEOUT: Duration = Duration::from_secs(5);

struct Outcome {
    terminated: bool,
    reason: StateReason,
    warning: Option<String>,
}

/// The records at the start of a reconciliation, which decide which steps have work to do. A step with work reads the
/// records again under its locks.
struct Seen {
    instances: Vec<InstanceRecord>,
    volumes: Vec<VolumeRecord>,
    snapshots: Vec<SnapshotRecord>,
    images: Vec<ImageRecord>,
}

impl Seen {
    fn read(tx: &Transaction) -> Result<Seen, StoreError> {
        // The other kinds are read too, so that each command reports all damaged records.
        tx.list::<AddressRecord>()?;
        tx.list::<KeyPairRecord>()?;
        tx.list::<SecurityGroupRecord>()?;
        tx.list::<SubnetRecord>()?;
        tx.list::<VpcRecord>()?;
        Ok(Seen { instances: tx.list()?, volumes: tx.list()?, snapshots: tx.list()?, images: tx.list()? })
    }
}

impl Instances<'_> {
    /// Updates the records of instances whose machines have ended, completes or undoes interrupted operations, and
    /// removes files that no record refers to. A failed step becomes a warning, and does not block other steps.
    pub(super) fn reconcile(&self) -> Warnings {
        let mut warnings = Warnings::default();
        let seen = match self.cloud.store.read(Seen::read) {
            Ok(seen) => seen,
            Err(error) => {
                warnings.push_failed("cannot check the instances", Err(error.into()));
                return warnings;
            }
        };
        warnings.extend(self.cloud.store.take_damaged());
        for record in &seen.instances {
            if record.status.state.has_machine() {
                let reconciled = self.reconcile_seen(record, &mut warnings);
                warnings.push_failed(&format!("cannot check {}", record.meta.id), reconciled);
            }
        }
        let recorded = layers::record_missing(self.cloud, &seen.volumes, &seen.snapshots, &mut warnings);
        warnings.push_failed("cannot record the backing files of volumes", recorded);
        let forgotten = self.forget_old(&seen.instances);
        warnings.push_failed("cannot remove old records", forgotten);
        let swept = self.sweep_directories(&seen, &mut warnings);
        warnings.push_failed("cannot remove the directories of deleted instances", swept);
        self.cloud.volumes().finish_interrupted(&seen.volumes, &mut warnings);
        let finished = self.cloud.snapshots().finish_pending(&seen.snapshots, &mut warnings);
        warnings.push_failed("cannot complete interrupted snapshots", finished);
        let removed = self.cloud.snapshots().remove_stray(&seen.snapshots, &mut warnings);
        warnings.push_failed("cannot remove the snapshots of interrupted image creations", removed);
        let swept = self.cloud.vpcs().sweep_directories();
        warnings.push_failed("cannot remove the directories of deleted VPCs", swept);
        warnings.extend(self.cloud.routers().restart_killed(&seen.instances));
        let applied = self.cloud.interfaces().finish_pending().map(|problems| warnings.extend(problems));
        warnings.push_failed("cannot apply an interrupted change of the network", applied);
        let swept = template::sweep(&self.cloud.home);
        warnings.push_failed("cannot remove unfinished templates", swept);
        let swept = self.cloud.sweep().stray_images(&seen.images);
        warnings.push_failed("cannot remove unfinished images", swept);
        warnings
    }

    /// Reconciles an instance with a machine. If it is running as recorded, there is nothing to do.
    fn reconcile_seen(&self, record: &InstanceRecord, warnings: &mut Warnings) -> Result<(), CloudError> {
        let id = record.meta.id;
        match self.cloud.node.instances().lock(id, Duration::ZERO)? {
            InstanceLock::Held if record.status.state == InstanceState::Running => Ok(()),
            InstanceLock::Held => self.reconcile_alive(id, warnings),
            lock => self.reconcile_ended(id, lock, warnings),
        }
    }

    pub(super) fn reconcile_instance(&self, id: InstanceId, warnings: &mut Warnings) -> Result<(), CloudError> {
        match self.cloud.node.instances().lock(id, Duration::ZERO)? {
            InstanceLock::Held => self.reconcile_alive(id, warnings),
            lock => self.reconcile_ended(id, lock, warnings),
        }
    }

    /// Reconciles an instance without a machine. `_lock` keeps other commands from starting one.
    fn reconcile_ended(&self, id: InstanceId, _lock: InstanceLock, warnings: &mut Warnings) -> Result<(), CloudError> {
        let instances = self.cloud.node.instances();
        // Read the record under the lock: another command may have started or stopped the instance meanwhile.
        let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
        if !record.status.state.has_machine() {
            return Ok(());
        }
        let outcome = judge(&record, instances.last_end(id), instances.hibernated(id).is_some());
        if is_launching(&record) {
            self.undo_launch(&record, &outcome.reason, warnings)?;
        }
        if outcome.terminated {
            self.settle_terminated(id, &outcome.reason)?;
        } else {
            self.settle_stopped(id, &outcome.reason)?;
        }
        warnings.extend(outcome.warning);
        Ok(())
    }

    /// Reconciles an instance whose machine is running. An interrupted start or termination is completed; an
    /// interrupted stop is undone, unless the machine is about to end.
    fn reconcile_alive(&self, id: InstanceId, warnings: &mut Warnings) -> Result<(), CloudError> {
        let instances = self.cloud.node.instances();
        let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
        if record.status.state == InstanceState::Pending {
            let launched = if is_launching(&record) { self.launched_with(&record)? } else { vec![record] };
            let ids: Vec<InstanceId> = launched.iter().map(|record| record.meta.id).collect();
            // A VMM that does not respond may not have created its VM yet, and may still fail to.
            if ids.iter().all(|id| instances.status(*id, END_TIMEOUT).is_ok()) {
                self.settle_running(&ids)?;
            }
            return Ok(());
        }
        if !matches!(record.status.state, InstanceState::Stopping | InstanceState::ShuttingDown) {
            return Ok(());
        }
        let Some(_operation) = instances.lock_operation(id)? else { return Ok(()) };
        // The command may have finished in the meantime.
        if self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?.status.state != record.status.state {
            return Ok(());
        }
        if record.status.state == InstanceState::ShuttingDown {
            warnings.push(format!("{id}: an interrupted termination was completed."));
            return self.end_and_terminate(id, &StateReason::user_initiated());
        }
        // A VMM may be saving the guest's memory, or may not respond because it is exiting.
        if instances.status(id, END_TIMEOUT).map_or(true, |status| status.is_ending) {
            return match instances.lock(id, END_TIMEOUT)?.taken() {
                Some(lock) => {
                    drop(lock);
                    self.reconcile_instance(id, warnings)
                }
                None => Ok(()),
            };
        }
        self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, id)?;
            if record.status.state == InstanceState::Stopping {
                record.status.state = InstanceState::Running;
                record.clear_reason();
                tx.put(&mut record)?;
            }
            Ok(())
        })?;
        warnings.push(format!(
            "{id}: the stop was interrupted; the instance is still running. Stop it with `wisp stop {id}`."
        ));
        Ok(())
    }

    /// Returns the instances of the same launch as `record` that have not started yet.
    fn launched_with(&self, record: &InstanceRecord) -> Result<Vec<InstanceRecord>, CloudError> {
        let mut records: Vec<InstanceRecord> = self.cloud.store.read::<_, StoreError>(|tx| tx.list())?;
        records.retain(|other| {
            other.status.launch.reservation_id == record.status.launch.reservation_id && is_launching(other)
        });
        Ok(records)
    }

    /// Terminates the started instances of a failed launch, because a launch starts all of its instances or none.
    fn undo_launch(
        &self,
        record: &InstanceRecord,
        reason: &StateReason,
        warnings: &mut Warnings,
    ) -> Result<(), CloudError> {
        for other in self.launched_with(record)?.into_iter().filter(|other| other.meta.id != record.meta.id) {
            let lock = self.cloud.node.instances().lock(other.meta.id, Duration::ZERO)?;
            // Instances without a machine are reconciled separately, each with its own reason.
            if matches!(lock, InstanceLock::Held) {
                warnings.push(format!(
                    "{}: terminated because {} from the same launch did not start.",
                    other.meta.id, record.meta.id
                ));
                self.end_and_terminate(other.meta.id, reason)?;
            }
        }
        Ok(())
    }

    fn forget_old(&self, records: &[InstanceRecord]) -> Result<(), CloudError> {
        let now = now();
        let is_old = |record: &&InstanceRecord| {
            record.status.terminated.is_some_and(|terminated| terminated + TERMINATED_LIFETIME <= now)
        };
        let old: Vec<&InstanceRecord> = records.iter().filter(is_old).collect();
        let tokens: Vec<ClientToken> = self.cloud.store.read::<_, StoreError>(|tx| tx.list())?;
        let is_expired = |token: &ClientToken| token.created + TOKEN_LIFETIME <= now;
        if old.is_empty() && !tokens.iter().any(is_expired) {
            return Ok(());
        }
        self.cloud.store.write(|tx| {
            old.iter().try_for_each(|record| tx.remove::<InstanceRecord>(&record.meta.id.to_string()))?;
            // A launch may have used an expired token again in the meantime.
            let tokens = tx.list::<ClientToken>()?;
            let mut expired = tokens.iter().filter(|token| is_expired(token));
            expired.try_for_each(|token| tx.remove::<ClientToken>(&token.token))
        })?;
        Ok(())
    }

    /// Removes unused volume files, and directories of instances that are terminated or have no record. Killed launches
    /// and terminations left them.
    fn sweep_directories(&self, seen: &Seen, warnings: &mut Warnings) -> Result<(), CloudError> {
        let instances = self.cloud.node.instances();
        let mut swept = false;
        if instances.list()?.iter().any(|hosted| is_stray(hosted, &seen.instances)) {
            // A launch creates directories before their records, and holds this lock meanwhile.
            let _lock = instances.lock_all()?;
            let records: Vec<InstanceRecord> = self.cloud.store.read::<_, StoreError>(|tx| tx.list_whole())?;
            for hosted in instances.list()?.iter().filter(|hosted| is_stray(hosted, &records)) {
                let removed = self.sweep_instance(hosted.id, hosted.is_half_removed);
                swept |= matches!(removed, Ok(true));
                warnings.push_failed(&format!("cannot remove the directory of {}", hosted.id), removed.map(drop));
            }
        }
        if swept || self.cloud.sweep().has_stray_volumes(&seen.volumes, &seen.snapshots)? {
            warnings.push_failed("cannot remove the files of deleted volumes", self.cloud.sweep().try_volumes());
        }
        Ok(())
    }

    /// Removes an instance from its node, unless it is running. Returns true if it was removed.
    fn sweep_instance(&self, id: InstanceId, is_half_removed: bool) -> Result<bool, CloudError> {
        let instances = self.cloud.node.instances();
        let lock = instances.lock(id, Duration::ZERO)?;
        if matches!(lock, InstanceLock::Held) && !is_half_removed {
            return Ok(false);
        }
        instances.remove(id)?;
        Ok(true)
    }
}

/// Returns true if an instance on the node is terminated, has no record, or was being removed.
fn is_stray(hosted: &HostInstance, records: &[InstanceRecord]) -> bool {
    let record = records.iter().find(|record| record.meta.id == hosted.id);
    hosted.is_half_removed || record.is_none_or(|record| record.status.state == InstanceState::Terminated)
}

/// Returns true if the launch that created the instance has not completed.
fn is_launching(record: &InstanceRecord) -> bool {
    record.status.state == InstanceState::Pending && record.status.starts == 0
}

/// Decides the new state of an instance that has no machine although its record says that it has one.
fn judge(record: &InstanceRecord, end: Option<EndRecord>, hibernated: bool) -> Outcome {
    let id = record.meta.id;
    let stopped = |reason: StateReason, warning: Option<String>| Outcome { terminated: false, reason, warning };
    let failed = |what: String| {
        let warning = format!("{id}: {what}; the instance is now stopped. `wisp console {id}` shows its last output.");
        stopped(StateReason::internal_error(&what), Some(warning))
    };
    match (record.status.state, end) {
        (InstanceState::ShuttingDown, _) => Outcome {
            terminated: true,
            reason: StateReason::user_initiated(),
            warning: Some(format!("{id}: an interrupted termination was completed.")),
        },
        (InstanceState::Pending, end) if is_launching(record) => {
            let why = match end {
                Some(EndRecord::Failed { why }) => why,
                _ => "the launch was interrupted".into(),
            };
            Outcome {
                terminated: true,
                reason: StateReason::launch_failed(&why),
                warning: Some(format!("{id}: {why}; the instance is now terminated.")),
            }
        }
        // The instance hibernated, or it failed to resume.
        (_, _) if hibernated => stopped(StateReason::user_hibernated(), None),
        (InstanceState::Stopping, _) => stopped(StateReason::user_initiated(), None),
        (_, Some(EndRecord::Ended { end: End::PowerOff | End::Reboot, .. })) => match record.spec.shutdown_behavior {
            ShutdownBehavior::Stop => stopped(StateReason::instance_initiated(), None),
            ShutdownBehavior::Terminate => {
                Outcome { terminated: true, reason: StateReason::instance_initiated(), warning: None }
            }
        },
        (_, Some(EndRecord::Ended { end, .. })) => failed(end.to_string()),
        (_, Some(EndRecord::Failed { why })) => failed(why),
        (InstanceState::Pending, None) => failed("the start was interrupted".into()),
        (_, None) => failed(format!("the VMM process was killed ({LOG} gives no reason)")),
    }
}
