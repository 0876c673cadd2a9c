//! Forks: new instances that go on from a running one's exact state.
//!
//! The running instance's volumes go on in new layers from the moment at which its machine is saved; the forks' volumes are
//! layers over what was there then. Its memory is mapped by all of them, privately: each pays for what it changes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::error::CloudError;
use super::launch::{MAX_COUNT, Prepared, await_turn, check_forks, volume_file};
use super::layers::over;
use super::lifecycle::get;
use super::limits::limit;
use super::machine::{Folder, Monitor, disk_id, volume_disk};
use super::network::{Addresses, for_fork};
use super::volume::get_volume;
use super::{Cloud, new_id, now};
use crate::ec2::state::{Action, InstanceState};
use crate::ec2::volume::VolumeState;
use crate::ec2::{Ec2Error, ErrorCode, InstanceId, ReservationId, catalogue};
use crate::host::disk_image;
use crate::store::{AttachmentRecord, BlockDeviceMapping, InstanceRecord, VolumeRecord};
use crate::vmm::config::{DiskConfig, DiskFormat, MachineConfig};
use crate::vmm::control::{Layer, Message, Request};
use crate::vmm::machine::Restore;
use crate::vmm::snapshot;

/// How long saving may take, most of it while the machine runs.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

/// What is to be forked.
#[derive(Debug, Clone)]
pub struct ForkSpec {
    /// The running instance.
    pub instance: InstanceId,
    /// How many forks.
    pub count: u32,
    /// The value of their Name tag; else they have the tags of the original without its name.
    pub name: Option<String>,
    /// Whether more vCPUs than the host has CPUs are fine.
    pub overcommit: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Forked {
    /// The forks.
    pub instances: Vec<InstanceRecord>,
    /// Connections to their monitors.
    pub monitors: Vec<Monitor>,
    /// For how long the original was paused.
    pub paused: Duration,
}

/// A running instance as it was at one moment.
pub(super) struct Frozen {
    /// Its machine, saved where its VMM cannot write.
    pub(super) saved: TempDir,
    /// Its volumes, with the files that they had then; the instance goes on in others.
    pub(super) volumes: Vec<VolumeRecord>,
    paused: Duration,
    /// Nobody sweeps away what has no entry yet.
    pub(super) sweeping: [File; 2],
    /// Nobody stops the instance, or takes a snapshot of its volumes.
    pub(super) _changing: [File; 2],
}

impl Cloud {
    /// Forks a running instance: when this returns, the forks' machines run. All of them do, or none.
    pub fn fork(&mut self, spec: &ForkSpec) -> Result<Forked, CloudError> {
        let record = self.check_fork(spec);
        let record = record.map_err(|error| self.unless_ended(spec.instance, "forked", error))?;
        let frozen = self.freeze(&record).map_err(|error| self.unless_ended(spec.instance, "forked", error))?;
        let Frozen { saved, volumes, paused, sweeping, _changing } = frozen;
        let prepared = self.prepare_forks(spec, &record, &volumes)?;
        drop(sweeping);
        let ids: Vec<InstanceId> = prepared.iter().map(|one| one.record.id).collect();
        match self.start_forks(prepared, &volumes, saved.path()) {
            Ok(monitors) => Ok(Forked { instances: self.settle_running(&ids)?, monitors, paused }),
            Err(error) => {
                self.abandon(&ids, &error);
                Err(error)
            }
        }
    }

    /// Saves a running instance's machine, while it goes on.
    pub(super) fn freeze(&mut self, record: &InstanceRecord) -> Result<Frozen, CloudError> {
        let Some(operation) = self.folder(record.id).try_lock_operation()? else {
            let action = "forked";
            return Err(Ec2Error::IncorrectInstanceState { instance: record.id, state: "stopping", action }.into());
        };
        let snapshots = self.lock_snapshots()?;
        let [own, saved] = self.folder(record.id).saved_for_others()?;
        let sweeping = [self.home.lock(&self.home.instances())?, self.home.lock(&self.home.volumes())?];
        let volumes = self.volumes_of(record)?;
        let paused = self.save_and_continue(record, &volumes, own.path())?;
        snapshot::take(own.path(), saved.path()).map_err(CloudError::file(saved.path(), "made"))?;
        Ok(Frozen { saved, volumes, paused, sweeping, _changing: [operation, snapshots] })
    }

    /// Refuses what cannot be frozen.
    pub(super) fn check_freezable(&self, record: &InstanceRecord) -> Result<(), CloudError> {
        let id = record.id;
        Action::Fork.allowed(id, record.state)?;
        if !catalogue::find(&record.instance_type)?.instance_store().is_empty() {
            return Err(CloudError::refused(
                ErrorCode::UnsupportedOperation,
                format!("The instance '{id}' has instance-store disks, which are its own and cannot be copied."),
                Some("Types without them can be: `wisp types` shows which those are.".into()),
            ));
        }
        self.folder(id).check_savable()
    }

    fn check_fork(&mut self, spec: &ForkSpec) -> Result<InstanceRecord, CloudError> {
        if !(1..=MAX_COUNT).contains(&spec.count) {
            let rule = format!("one fork makes 1 to {MAX_COUNT} instances.");
            return Err(
                Ec2Error::InvalidParameterValue { parameter: "Count", given: spec.count.to_string(), rule }.into()
            );
        }
        let record = self.store.read::<_, CloudError>(|tx| get(tx, spec.instance))?;
        self.check_freezable(&record)?;
        check_forks(&record, spec.count, spec.overcommit)?;
        Ok(record)
    }

    /// Saves the machine, and has it and its volumes go on in new layers.
    fn save_and_continue(
        &mut self,
        record: &InstanceRecord,
        before: &[VolumeRecord],
        saved: &Path,
    ) -> Result<Duration, CloudError> {
        let folder = self.folder(record.id);
        let mut after = Vec::new();
        for volume in before {
            let path = self.home.volumes().join(volume_file(volume.id, volume.generation + 1));
            let base = self.home.volumes().join(&volume.file);
            disk_image::create_layer(&path, &base, DiskFormat::Qcow2, Some(volume.size))?;
            after.push(continued(volume));
        }
        let disks = after.iter().map(|volume| volume_disk(&self.home, volume)).collect::<Result<Vec<_>, _>>()?;
        // From now on the layers are the volumes' files. They are empty: until the machine writes into them, or if it never
        // does because this fails, they read as the files that it writes.
        self.store.write::<_, CloudError>(|tx| {
            for volume in before {
                tx.put(&continued(&get_volume(tx, volume.id)?))?;
            }
            Ok(())
        })?;
        folder.change_config(|config| {
            disks.iter().for_each(|disk| continue_in(config, disk));
        })?;
        let layers =
            disks.into_iter().map(|disk| Layer { disk: disk.id, path: disk.path, backing: disk.backing }).collect();
        let request = Request::Fork { folder: saved.to_path_buf(), layers };
        let mut monitor = folder.connect()?;
        match monitor.ask_within(&request, SAVE_TIMEOUT)? {
            Message::Saved { paused_ns } => Ok(Duration::from_nanos(paused_ns)),
            other => Err(monitor.unexpected(&other)),
        }
    }

    /// Makes folders, volumes and entries, all of them or none.
    fn prepare_forks(
        &mut self,
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
        let origin = self.address_origin();
        let inserted = self.store.write::<_, CloudError>(|tx| {
            let mut addresses = Addresses::taken(tx, origin)?;
            for one in &mut prepared {
                if let Some(network) = &mut one.record.network {
                    addresses.give(network)?;
                }
                tx.insert(&one.record)?;
                one.volumes.iter().try_for_each(|volume| tx.insert(volume))?;
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
        let folder = Folder::of(&self.home, id);
        folder.create()?;
        let lock = folder.try_lock()?.expect("nobody knows the folder that was just made");
        let mut volumes = Vec::new();
        let made = before.iter().try_for_each(|volume| {
            volumes.push(self.fork_volume(volume, id, time)?);
            Ok(())
        });
        made.inspect_err(|_: &CloudError| self.discard_one(&volumes, &folder))?;
        let mut tags = original.tags.clone();
        tags.remove("Name");
        tags.extend(spec.name.iter().map(|name| ("Name".to_string(), name.clone())));
        let record = InstanceRecord {
            id,
            reservation_id,
            launch_index,
            client_token: None,
            state: InstanceState::Pending,
            state_reason: None,
            state_transition_reason: String::new(),
            created: time,
            launch_time: time,
            starts: 0,
            terminated: None,
            termination_protection: false,
            // It ran in the original, whose disk has what came of it.
            user_data: None,
            block_devices: volumes.iter().filter_map(VolumeRecord::mapping).collect::<Vec<BlockDeviceMapping>>(),
            network: for_fork(original.network.as_ref()),
            // A new instance has a new one's.
            credits: None,
            tags,
            ..original.clone()
        };
        Ok(Prepared { record, volumes, folder, lock })
    }

    /// A volume over what `volume` was when the machine was saved.
    fn fork_volume(&self, volume: &VolumeRecord, instance: InstanceId, time: u64) -> Result<VolumeRecord, CloudError> {
        let id = new_id();
        let file = volume_file(id, 1);
        let (path, base) = (self.home.volumes().join(&file), self.home.volumes().join(&volume.file));
        disk_image::create_layer(&path, &base, DiskFormat::Qcow2, Some(volume.size))?;
        let attachment = volume.attachment.as_ref().map(|attachment| AttachmentRecord {
            instance_id: instance,
            attach_time: time,
            // Nobody has asked for a volume that outlives the fork.
            delete_on_termination: true,
            ..attachment.clone()
        });
        Ok(VolumeRecord {
            id,
            state: VolumeState::InUse,
            created: time,
            snapshot_id: None,
            file,
            backing: over(&volume.file, volume.backing.as_deref()),
            generation: 1,
            attachment,
            tags: Default::default(),
            ..volume.clone()
        })
    }

    fn start_forks(
        &mut self,
        prepared: Vec<Prepared>,
        before: &[VolumeRecord],
        saved: &Path,
    ) -> Result<Vec<Monitor>, CloudError> {
        let restore = Restore { folder: PathBuf::from(saved), once: false };
        let mut monitors = Vec::new();
        for Prepared { record, volumes, folder, lock } in prepared {
            let image = self.open_image(record.image_id)?;
            let seed = self.write_seed(&folder, &record, &image.manifest, true)?;
            let mut config = folder.config(&self.home, &record, &image, &volumes, seed)?;
            let network = self.connect(&record, &folder, &mut config)?;
            limit(&mut config, &record, &volumes);
            for (disk, volume) in config.disks.iter_mut().zip(before) {
                disk.was = Some(disk_id(volume));
            }
            await_turn(&mut monitors)?;
            monitors.push(folder.spawn(&config, lock, network, Some(&restore))?);
        }
        for monitor in &mut monitors {
            self.notices.extend(monitor.wait_started()?);
        }
        self.notice_ways_out();
        Ok(monitors)
    }
}

/// Returns the record of the volume after it switched to a new layer.
pub(super) fn continued(volume: &VolumeRecord) -> VolumeRecord {
    let generation = volume.generation + 1;
    VolumeRecord {
        generation,
        file: volume_file(volume.id, generation),
        backing: over(&volume.file, volume.backing.as_deref()),
        ..volume.clone()
    }
}

/// Makes a rebooted machine use the files of `disk` for the disk with that id.
pub(super) fn continue_in(config: &mut MachineConfig, disk: &DiskConfig) {
    for known in config.disks.iter_mut().filter(|known| known.id == disk.id) {
        known.path.clone_from(&disk.path);
        known.format = disk.format;
        known.backing.clone_from(&disk.backing);
    }
}
