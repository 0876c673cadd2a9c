//! Snapshots of EBS volumes.
//!
//! A snapshot takes the file that its volume is written into as it is, and the volume goes on in a new layer over it:
//! nothing is copied, and the snapshot needs the volume no more.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use super::error::CloudError;
use super::fork::{continue_in, continued};
use super::machine::{Monitor, volume_disk};
use super::volume::get_volume;
use super::{Cloud, new_id, now, resolve};
use crate::ec2::{SnapshotId, VolumeId};
use crate::host::disk_image;
use crate::host::home::{SNAPSHOTS_LOCK, lock_file, try_lock_file};
use crate::store::{SnapshotRecord, SnapshotState, VolumeRecord};
use crate::vmm::config::DiskFormat;
use crate::vmm::control::Request;

impl Cloud {
    /// All snapshots, the oldest first.
    pub fn snapshots(&mut self) -> Result<Vec<SnapshotRecord>, CloudError> {
        let mut records: Vec<SnapshotRecord> = self.store.read::<_, CloudError>(|tx| Ok(tx.list()?))?;
        records.sort_by_key(|record| (record.started, record.id));
        Ok(records)
    }

    /// The snapshot that `reference` stands for.
    pub fn snapshot(&mut self, reference: &str) -> Result<SnapshotRecord, CloudError> {
        self.store.read(|tx| resolve::snapshot(tx, reference))
    }

    /// Takes a snapshot of a volume; of one that a running guest writes, as a power cut at that moment would leave it.
    pub fn create_snapshot(
        &mut self,
        id: VolumeId,
        description: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord, CloudError> {
        let volumes = self.home.volumes();
        let _operation = self.lock_snapshots()?;
        let lock = self.home.lock(&volumes)?;
        let before = self.store.read::<_, CloudError>(|tx| get_volume(tx, id))?;
        let running = self.running_machine_of(&before)?;
        let after = continued(&before);
        let layer = volumes.join(&after.file);
        disk_image::create_layer(&layer, &volumes.join(&before.file), DiskFormat::Qcow2, Some(before.size))?;
        let snapshot = SnapshotRecord {
            id: new_id(),
            volume_id: id,
            size: before.size,
            state: SnapshotState::Pending,
            started: now(),
            description: description.into(),
            file: before.file.clone(),
            backing: before.backing.clone(),
            image_id: before.image_id,
            tags,
        };
        // From now on the layer is the volume's file. It is empty: until the machine writes into it, if one runs, it
        // reads as the file that is still being written.
        self.store.write::<_, CloudError>(|tx| {
            tx.put(&continued(&get_volume(tx, id)?))?;
            Ok(tx.insert(&snapshot)?)
        })?;
        drop(lock);
        if let Some(mut monitor) = running
            && let Err(error) = self.switch(&mut monitor, &before, &after)
        {
            if is_refusal(&error) {
                self.forget_snapshot(&before, &snapshot)?;
            }
            return Err(match &before.attachment {
                Some(attachment) => self.unless_ended(attachment.instance_id, "given a snapshot", error),
                None => error,
            });
        }
        let snapshot = SnapshotRecord { state: SnapshotState::Completed, ..snapshot };
        self.store.write::<_, CloudError>(|tx| Ok(tx.put(&snapshot)?))?;
        Ok(snapshot)
    }

    /// Takes back a snapshot that the VMM refused: it goes on writing the volume's file of before.
    fn forget_snapshot(&mut self, before: &VolumeRecord, snapshot: &SnapshotRecord) -> Result<(), CloudError> {
        self.store.write::<_, CloudError>(|tx| {
            let mut volume = get_volume(tx, before.id)?;
            volume.file.clone_from(&before.file);
            volume.backing.clone_from(&before.backing);
            tx.put(&volume)?;
            Ok(tx.remove::<SnapshotRecord>(&snapshot.id.to_string())?)
        })?;
        self.sweep_volumes();
        Ok(())
    }

    /// Has a running machine continue a volume in a new layer, from the files `before` to those `after`. A guest that
    /// reboots in between continues in the layer, too.
    fn switch(&self, monitor: &mut Monitor, before: &VolumeRecord, after: &VolumeRecord) -> Result<(), CloudError> {
        let Some(attachment) = &after.attachment else { return Ok(()) };
        let [before, after] = [volume_disk(&self.home, before)?, volume_disk(&self.home, after)?];
        let folder = self.folder(attachment.instance_id);
        folder.change_config(|config| continue_in(config, &after))?;
        let switched = monitor.demand(&Request::SwitchDisk { id: after.id, layer: after.path, backing: after.backing });
        if switched.as_ref().is_err_and(is_refusal) {
            folder.change_config(|config| continue_in(config, &before))?;
        }
        switched
    }

    /// Deletes a snapshot. Volumes that were made of it keep what they need.
    pub fn delete_snapshot(&mut self, id: SnapshotId) -> Result<(), CloudError> {
        self.store.write::<_, CloudError>(|tx| Ok(tx.remove::<SnapshotRecord>(&id.to_string())?))?;
        self.sweep_volumes();
        self.sweep_images();
        Ok(())
    }

    /// Waits until nobody takes a snapshot, and keeps others from it.
    pub(super) fn lock_snapshots(&self) -> Result<File, CloudError> {
        let path = self.snapshots_lock();
        lock_file(&path).map_err(CloudError::file(path, "locked"))
    }

    /// Held by the command that takes a snapshot, from before it has an entry until it is complete.
    fn snapshots_lock(&self) -> PathBuf {
        self.home.volumes().join(SNAPSHOTS_LOCK)
    }

    /// Completes snapshots whose command was killed: where the machine does not go on in the layer yet, it does now.
    pub(super) fn finish_snapshots(&mut self) -> Result<(), CloudError> {
        if self.pending_snapshots()?.is_empty() {
            return Ok(());
        }
        let path = self.snapshots_lock();
        let Some(_operation) = try_lock_file(&path).map_err(CloudError::file(&path, "locked"))? else { return Ok(()) };
        for snapshot in self.pending_snapshots()? {
            match self.finish_snapshot(&snapshot) {
                Ok(()) => {
                    self.notices.push(format!("{}: its command was interrupted; it is complete now.", snapshot.id))
                }
                // The instance is on its way to another state, or out of reach: a later command will do it.
                Err(error) => log::info!("{} cannot be completed yet: {error}", snapshot.id),
            }
        }
        Ok(())
    }

    fn pending_snapshots(&mut self) -> Result<Vec<SnapshotRecord>, CloudError> {
        let mut records = self.snapshots()?;
        records.retain(|record| record.state == SnapshotState::Pending);
        Ok(records)
    }

    fn finish_snapshot(&mut self, snapshot: &SnapshotRecord) -> Result<(), CloudError> {
        let volume =
            self.store.read::<_, CloudError>(|tx| Ok(tx.get::<VolumeRecord>(&snapshot.volume_id.to_string())?))?;
        if let Some(volume) = volume
            && let Some(mut monitor) = self.running_machine_of(&volume)?
        {
            let before =
                VolumeRecord { file: snapshot.file.clone(), backing: snapshot.backing.clone(), ..volume.clone() };
            self.switch(&mut monitor, &before, &volume)?;
        }
        let completed = SnapshotRecord { state: SnapshotState::Completed, ..snapshot.clone() };
        self.store.write::<_, CloudError>(|tx| Ok(tx.put(&completed)?))
    }
}

/// Returns whether the VMM said that it did not switch to the layer. One that ended, or did not answer, may have done so: then
/// the layer stays the volume's file, and a later command completes the snapshot.
fn is_refusal(error: &CloudError) -> bool {
    matches!(error, CloudError::Refused { .. })
}
