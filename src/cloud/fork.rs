//! Forks: new instances that start from the exact state of a running one.
//!
//! A fork takes a snapshot of the running VM. Then the original's volumes continue in new overlays; the forks' volumes
//! are overlays over the same backing files. All forks map the snapshot's memory privately, so each one takes extra
//! memory only for the pages that it changes.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::error::CloudError;
use super::hibernate::check_savable;
use super::instances::Instances;
use super::launch::{MAX_COUNT, Prepared, check_forks};
use super::layers::over;
use super::lookup::{get, get_volume};
use super::machine_config::volume_disk;
use super::names::{disk_id, volume_file};
use super::network::{AddressPool, for_fork};
use super::start::Source;
use super::{new_id, now};
use disk::disk_image;
use ec2::state::{Action, InstanceState};
use ec2::volume::VolumeState;
use ec2::{Ec2Error, ErrorCode, InstanceId, ReservationId, catalog};
use machine::config::{DiskConfig, DiskFormat, MachineConfig};
use machine::control::{ControlRequest, Message, NewOverlay};
use machine::launch::Restore;
use machine::snapshot_files;
use node::instance::{InstanceDir, MachineHandle};
use store::{AttachmentRecord, InstanceRecord, LaunchRecord, Meta, VolumeRecord};

/// Timeout for a snapshot. The guest keeps running for most of this time.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

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
    pub machines: Vec<MachineHandle>,
    pub paused: Duration,
}

/// The state of a running instance at one point in time.
pub(super) struct Frozen {
    /// Directory with the snapshot. The VMM cannot write to it.
    pub(super) saved: TempDir,
    /// The volumes' records at the time of the snapshot. The instance itself has switched to new overlays.
    pub(super) volumes: Vec<VolumeRecord>,
    paused: Duration,
    /// Locks that keep other commands from deleting files that the store does not refer to yet.
    pub(super) sweeping: [File; 2],
    /// Locks that keep other commands from stopping the instance or taking EBS snapshots.
    pub(super) _changing: [File; 2],
}

impl Instances<'_> {
    /// Forks a running instance. If one of the forks does not start, all of them are terminated.
    pub fn fork(&self, spec: &ForkSpec) -> Result<Forked, CloudError> {
        let record = self.check_fork(spec);
        let record = record.map_err(|error| self.unless_ended(spec.instance, "it was forked", error))?;
        let image = self.cloud.images().open_by_id(record.spec.image_id)?;
        let frozen = self.freeze(&record).map_err(|error| self.unless_ended(spec.instance, "it was forked", error))?;
        let Frozen { saved, volumes, paused, sweeping, _changing } = frozen;
        let prepared = self.prepare_forks(spec, &record, &volumes)?;
        drop(sweeping);
        let ids: Vec<InstanceId> = prepared.iter().map(|one| one.record.meta.id).collect();
        let replaced: Vec<String> = volumes.iter().map(disk_id).collect();
        let plan = |Prepared { record, volumes, lock, .. }: Prepared| {
            let restore = Restore { dir: saved.path().to_path_buf(), once: false };
            self.plan_start(&record, lock, &image, &volumes, Source::Copy { restore, disks: &replaced })
        };
        match self.start_all(prepared.into_iter().map(plan)) {
            Ok(machines) => Ok(Forked { instances: self.settle_running(&ids)?, machines, paused }),
            Err(error) => {
                self.abandon(&ids, &error);
                Err(error)
            }
        }
    }

    /// Takes a snapshot of a running instance. The instance is paused only briefly.
    pub(super) fn freeze(&self, record: &InstanceRecord) -> Result<Frozen, CloudError> {
        let Some(operation) = self.cloud.dir(record.meta.id).try_lock_operation()? else {
            return Err(record.meta.id.incorrect_state("stopping", "copied").into());
        };
        let snapshots = self.cloud.snapshots().lock()?;
        let [own, saved] = self.cloud.dir(record.meta.id).saved_for_others()?;
        let sweeping =
            [self.cloud.home.lock(&self.cloud.home.instances())?, self.cloud.home.lock(&self.cloud.home.volumes())?];
        let volumes = self.cloud.volumes().of(record)?;
        let paused = self.save_and_continue(record, &volumes, own.path())?;
        snapshot_files::take(own.path(), saved.path()).map_err(CloudError::file(saved.path(), "create"))?;
        Ok(Frozen { saved, volumes, paused, sweeping, _changing: [operation, snapshots] })
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
        check_savable(&self.cloud.dir(id))
    }

    fn check_fork(&self, spec: &ForkSpec) -> Result<InstanceRecord, CloudError> {
        if !(1..=MAX_COUNT).contains(&spec.count) {
            let rule = format!("it must be from 1 to {MAX_COUNT}.");
            return Err(Ec2Error::invalid_parameter("Count", spec.count, rule).into());
        }
        let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, spec.instance))?;
        self.check_freezable(&record)?;
        check_forks(&record, spec.count, spec.overcommit)?;
        Ok(record)
    }

    /// Takes a snapshot of the VM and switches its volumes to new overlays.
    fn save_and_continue(
        &self,
        record: &InstanceRecord,
        before: &[VolumeRecord],
        saved: &Path,
    ) -> Result<Duration, CloudError> {
        let dir = self.cloud.dir(record.meta.id);
        let mut after = Vec::new();
        for volume in before {
            let path = self.cloud.home.volumes().join(volume_file(volume.meta.id, volume.status.file_number + 1));
            let base = self.cloud.home.volumes().join(&volume.status.file);
            disk_image::create_layer(&path, &base, DiskFormat::Qcow2, Some(volume.spec.size))?;
            after.push(continued(volume));
        }
        let disks = after.iter().map(|volume| volume_disk(&self.cloud.home, volume)).collect::<Result<Vec<_>, _>>()?;
        // From here on, the overlays are the volumes' files. They are empty, so the guest can keep writing to the
        // backing files until the switch, or for good if the switch fails.
        self.cloud.store.write::<_, CloudError>(|tx| {
            for volume in before {
                tx.put(&mut continued(&get_volume(tx, volume.meta.id)?))?;
            }
            Ok(())
        })?;
        dir.change_config(|config| {
            disks.iter().for_each(|disk| continue_in(config, disk));
        })?;
        let layers = disks
            .into_iter()
            .map(|disk| NewOverlay { disk: disk.id, path: disk.path, backing: disk.backing })
            .collect();
        let request = ControlRequest::Fork { dir: saved.to_path_buf(), layers };
        let mut machine = MachineHandle::connect(&dir)?;
        match machine.ask_within(&request, SAVE_TIMEOUT)? {
            Message::Saved { paused_ns } => Ok(Duration::from_nanos(paused_ns)),
            other => Err(machine.unexpected(&other).into()),
        }
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
            let mut addresses = AddressPool::taken(tx, &self.cloud.home)?;
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
        let dir = InstanceDir::of(&self.cloud.home, id);
        dir.create()?;
        let lock = dir.try_lock()?.expect("the directory is new and unknown to others");
        let mut volumes = Vec::new();
        let made = before.iter().try_for_each(|volume| {
            volumes.push(self.fork_volume(volume, id, time)?);
            Ok(())
        });
        made.inspect_err(|_: &CloudError| self.discard_one(&volumes, &dir))?;
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
        Ok(Prepared { record, volumes, dir, lock })
    }

    /// Creates an overlay over the file that `volume` had at the time of the snapshot.
    fn fork_volume(&self, volume: &VolumeRecord, instance: InstanceId, time: u64) -> Result<VolumeRecord, CloudError> {
        let id = new_id();
        let file = volume_file(id, 1);
        let (path, base) = (self.cloud.home.volumes().join(&file), self.cloud.home.volumes().join(&volume.status.file));
        disk_image::create_layer(&path, &base, DiskFormat::Qcow2, Some(volume.spec.size))?;
        let attachment = volume.status.attachment.as_ref().map(|attachment| AttachmentRecord {
            instance_id: instance,
            attach_time: time,
            // A fork's volumes are deleted with it, whatever the original's setting.
            delete_on_termination: true,
            ..attachment.clone()
        });
        Ok(VolumeRecord {
            meta: Meta::new(id, time, Default::default()),
            spec: store::volume::Spec { snapshot_id: None, ..volume.spec.clone() },
            status: store::volume::Status {
                state: VolumeState::InUse,
                file,
                file_number: 1,
                backing: over(&volume.status.file, volume.status.backing.as_deref()),
                attachment,
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

/// Gives the disk with the same ID the files of `disk`. After a guest reboot, the VMM reads `config` again.
pub(super) fn continue_in(config: &mut MachineConfig, disk: &DiskConfig) {
    for known in config.disks.iter_mut().filter(|known| known.id == disk.id) {
        known.path.clone_from(&disk.path);
        known.format = disk.format;
        known.backing.clone_from(&disk.backing);
    }
}
