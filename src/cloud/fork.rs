//! Forks: new instances that start from the exact state of a running one.
//!
//! A fork takes a snapshot of the running VM. Then the original's volumes continue in new overlays; the forks' volumes
//! are overlays over the same backing files. All forks map the snapshot's memory privately, so each one takes extra
//! memory only for the pages that it changes.

use std::time::Duration;

use super::error::CloudError;
use super::hibernate::check_savable;
use super::instances::Instances;
use super::launch::{MAX_COUNT, Prepared, check_forks};
use super::layers::{below, over, volume_disk};
use super::lookup::{get, get_volume};
use super::names::volume_file;
use super::network::{AddressPool, for_fork};
use super::{Outcome, new_id, now};
use ec2::state::{Action, InstanceState};
use ec2::volume::{AttachmentState, VolumeState};
use ec2::{Ec2Error, ErrorCode, InstanceId, ReservationId, catalog};
use node::host::{Guard, Machine, NewFile, SavedMachine, Source};
use node::machine_config::disk_id;
use store::{AttachmentRecord, InstanceRecord, LaunchRecord, Meta, VolumeRecord};

#[derive(Debug, Clone)]
pub struct ForkSpec {
    pub instance: InstanceId,
    pub count: u32,
    /// Value of the forks' Name tag. All other tags are copied from the original.
    pub name: Option<String>,
    /// Allows more vCPUs than the host has CPUs.
    pub overcommit: bool,
}

#[derive(Debug)]
pub struct Forked {
    pub instances: Vec<InstanceRecord>,
    pub machines: Vec<Box<dyn Machine>>,
    pub paused: Duration,
}

/// The state of a running instance at one point in time.
pub(super) struct Frozen {
    /// The snapshot. The VMM cannot write to it.
    pub(super) saved: SavedMachine,
    /// The volumes' records at the time of the snapshot. The instance itself has switched to new overlays.
    pub(super) volumes: Vec<VolumeRecord>,
    /// Locks that keep other commands from deleting files that the store does not refer to yet.
    pub(super) sweeping: [Guard; 2],
    /// Locks that keep other commands from stopping the instance or taking EBS snapshots.
    pub(super) _changing: [Guard; 2],
}

impl Instances<'_> {
    /// Forks a running instance. If one of the forks does not start, all of them are terminated.
    pub fn fork(&self, spec: &ForkSpec) -> Result<Outcome<Forked>, CloudError> {
        let record = self.check_fork(spec);
        let record = record.map_err(|error| self.unless_ended(spec.instance, "it was forked", error))?;
        let image = self.cloud.images().open_by_id(record.spec.image_id)?;
        let frozen = self.freeze(&record).map_err(|error| self.unless_ended(spec.instance, "it was forked", error))?;
        let Frozen { saved, volumes, sweeping, _changing } = frozen;
        let prepared = self.prepare_forks(spec, &record, &volumes)?;
        drop(sweeping);
        let ids: Vec<InstanceId> = prepared.iter().map(|one| one.record.meta.id).collect();
        let replaced: Vec<String> = volumes.iter().map(|volume| disk_id(volume.meta.id)).collect();
        let plan = |Prepared { record, volumes, lock, .. }: Prepared| {
            let restore = saved.restore.clone();
            self.plan_start(&record, lock, &image, &volumes, Source::Copy { restore, disks: &replaced })
        };
        match self.start_all(prepared.into_iter().map(plan)) {
            Ok(started) => {
                let instances = self.settle_running(&ids)?;
                Ok(started.map(|machines| Forked { instances, machines, paused: saved.paused }))
            }
            Err(error) => {
                self.abandon(&ids, &error);
                Err(error)
            }
        }
    }

    /// Takes a snapshot of a running instance. The instance is paused only briefly.
    pub(super) fn freeze(&self, record: &InstanceRecord) -> Result<Frozen, CloudError> {
        let node = self.cloud.node();
        let Some(operation) = node.instances().lock_operation(record.meta.id)? else {
            return Err(record.meta.id.incorrect_state("stopping", "copied").into());
        };
        let snapshots = node.volumes().lock_snapshots()?;
        let sweeping = [node.instances().lock_all()?, node.volumes().lock()?];
        let volumes = self.cloud.volumes().of(record)?;
        let saved = self.save_and_continue(record, &volumes)?;
        Ok(Frozen { saved, volumes, sweeping, _changing: [operation, snapshots] })
    }

    pub(super) fn check_freezable(&self, record: &InstanceRecord) -> Result<(), CloudError> {
        let id = record.meta.id;
        Action::Fork.allowed(id, record.status.state)?;
        if !catalog::find(&record.spec.size.instance_type)?.instance_store().is_empty() {
            return Err(CloudError::refused(
                ErrorCode::UnsupportedOperation,
                format!("The instance '{id}' has instance-store disks, which cannot be copied."),
                Some("Use an instance type without instance storage; `wisp types` lists the types.".into()),
            ));
        }
        check_savable(self.cloud, id)
    }

    fn check_fork(&self, spec: &ForkSpec) -> Result<InstanceRecord, CloudError> {
        if !(1..=MAX_COUNT).contains(&spec.count) {
            let rule = format!("it must be from 1 to {MAX_COUNT}.");
            return Err(Ec2Error::invalid_parameter("Count", spec.count, rule).into());
        }
        let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, spec.instance))?;
        self.check_freezable(&record)?;
        check_forks(self.cloud.node(), &record, spec.count, spec.overcommit)?;
        Ok(record)
    }

    /// Takes a snapshot of the VM and switches its volumes to new overlays.
    fn save_and_continue(&self, record: &InstanceRecord, before: &[VolumeRecord]) -> Result<SavedMachine, CloudError> {
        let mut disks = Vec::new();
        for volume in before {
            let after = continued(volume);
            let content = NewFile::Overlay { base: &below(&volume.status.file), size: Some(volume.spec.size) };
            self.cloud.node.volumes().create(&after.status.file, &content)?;
            disks.push(volume_disk(&after)?);
        }
        // From here on, the overlays are the volumes' files. They are empty, so the guest can keep writing to the
        // backing files until the switch, or for good if the switch fails.
        self.cloud.store.write::<_, CloudError>(|tx| {
            for volume in before {
                tx.put(&mut continued(&get_volume(tx, volume.meta.id)?))?;
            }
            Ok(())
        })?;
        Ok(self.cloud.node.instances().save(record.meta.id, &disks)?)
    }

    /// Creates the directories, volumes and records of all forks, or none of them.
    fn prepare_forks(
        &self,
        spec: &ForkSpec,
        original: &InstanceRecord,
        before: &[VolumeRecord],
    ) -> Result<Vec<Prepared>, CloudError> {
        let reservation = new_id();
        let mut prepared = Vec::new();
        for index in 0..spec.count {
            match self.prepare_fork(spec, original, before, reservation, index) {
                Ok(one) => prepared.push(one),
                Err(error) => {
                    self.discard(&prepared);
                    return Err(error);
                }
            }
        }
        let inserted = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut addresses = AddressPool::taken(tx, self.cloud.node())?;
            for (one, sequence) in prepared.iter_mut().zip(InstanceRecord::next_sequence(tx)?..) {
                if let Some(network) = &mut one.record.status.network {
                    addresses.give(network)?;
                }
                one.record.status.launch.sequence = sequence;
                tx.insert(&mut one.record)?;
                one.volumes.iter_mut().try_for_each(|volume| tx.insert(volume))?;
            }
            Ok(())
        });
        if inserted.is_err() {
            self.discard(&prepared);
        }
        inserted.map(|()| prepared)
    }

    fn prepare_fork(
        &self,
        spec: &ForkSpec,
        original: &InstanceRecord,
        before: &[VolumeRecord],
        reservation_id: ReservationId,
        launch_index: u32,
    ) -> Result<Prepared, CloudError> {
        let time = now();
        let id: InstanceId = new_id();
        let lock = self.cloud.node.instances().create(id)?;
        let mut volumes = Vec::new();
        let made = before.iter().try_for_each(|volume| {
            volumes.push(self.fork_volume(volume, id, time)?);
            Ok(())
        });
        made.inspect_err(|_: &CloudError| self.discard_one(&volumes, id))?;
        let mut tags = original.meta.tags.clone();
        tags.remove("Name");
        tags.extend(spec.name.iter().map(|name| ("Name".to_string(), name.clone())));
        let record = InstanceRecord {
            meta: Meta::new(id, time, tags),
            spec: store::instance::Spec {
                termination_protection: false,
                // The user data script already ran in the original, so its changes are on the disk.
                user_data: None,
                ..original.spec.clone()
            },
            status: store::instance::Status {
                launch: LaunchRecord { reservation_id, launch_index, ..original.status.launch.clone() },
                state: InstanceState::Pending,
                state_reason: None,
                state_transition_reason: String::new(),
                launch_time: time,
                starts: 0,
                terminated: None,
                block_devices: volumes.iter().filter_map(VolumeRecord::mapping).collect(),
                network: for_fork(original.status.network.as_ref()),
                // A fork starts with the CPU credits of a new instance.
                credits: None,
            },
        };
        Ok(Prepared { record, volumes, lock })
    }

    /// Creates an overlay over the file that `volume` had at the time of the snapshot.
    fn fork_volume(&self, volume: &VolumeRecord, instance: InstanceId, time: u64) -> Result<VolumeRecord, CloudError> {
        let id = new_id();
        let file = volume_file(id, 1);
        let content = NewFile::Overlay { base: &below(&volume.status.file), size: Some(volume.spec.size) };
        self.cloud.node.volumes().create(&file, &content)?;
        let attachment = volume.status.attachment.as_ref().map(|attachment| AttachmentRecord {
            instance_id: instance,
            attach_time: time,
            // A fork's volumes are deleted with it, whatever the original's setting.
            delete_on_termination: true,
            state: AttachmentState::Attached,
            ..attachment.clone()
        });
        Ok(VolumeRecord {
            meta: Meta::new(id, time, Default::default()),
            spec: store::volume::Spec { snapshot_id: None, zone: None, ..volume.spec.clone() },
            status: store::volume::Status {
                state: VolumeState::InUse,
                file,
                file_number: 1,
                backing: over(&volume.status.file, volume.status.backing.as_deref()),
                attachment,
                modification: None,
                ..volume.status.clone()
            },
        })
    }
}

/// Returns the record of the volume after it switched to a new overlay.
pub(super) fn continued(volume: &VolumeRecord) -> VolumeRecord {
    let file_number = volume.status.file_number + 1;
    let mut continued = volume.clone();
    continued.status.file_number = file_number;
    continued.status.file = volume_file(volume.meta.id, file_number);
    continued.status.backing = over(&volume.status.file, volume.status.backing.as_deref());
    continued
}
