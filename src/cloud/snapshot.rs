//! Snapshots of EBS volumes.
//!
//! The file that holds the volume's data becomes the snapshot, and the volume continues in a new overlay over it.
//! No data is copied, and the snapshot outlives the volume.

use std::collections::BTreeMap;

use super::error::CloudError;
use super::fork::continued;
use super::layers::{below, volume_disk};
use super::lookup::{by_id, get_volume};
use super::{Cloud, Warnings, new_id, now, resolve};
use ec2::{InstanceId, SnapshotId, VolumeId};
use node::host::NewFile;
use store::{Meta, SnapshotRecord, SnapshotState, VolumeRecord};

#[derive(Debug, Clone, Copy)]
pub struct Snapshots<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Snapshots<'_> {
    pub fn list(&self) -> Result<Vec<SnapshotRecord>, CloudError> {
        let mut records: Vec<SnapshotRecord> = self.cloud.records()?;
        records.sort_by_key(|record| (record.meta.created, record.meta.id));
        Ok(records)
    }

    pub fn find(&self, reference: &str) -> Result<SnapshotRecord, CloudError> {
        self.cloud.store.read(|tx| resolve::snapshot(tx, reference))
    }

    /// Creates a snapshot of a volume. If a running guest writes to the volume, the snapshot is crash-consistent.
    pub fn create(
        &self,
        id: VolumeId,
        description: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord, CloudError> {
        self.take(store::snapshot::Spec { volume_id: id, description: description.into(), is_for_image: false }, tags)
    }

    /// Creates the snapshot from which an image is created. The caller holds the lock of images and removes the
    /// snapshot. If the caller is killed, a later command removes it.
    pub(super) fn create_for_image(&self, id: VolumeId) -> Result<SnapshotRecord, CloudError> {
        let description = "Created for an image".into();
        self.take(store::snapshot::Spec { volume_id: id, description, is_for_image: true }, BTreeMap::new())
    }

    fn take(&self, spec: store::snapshot::Spec, tags: BTreeMap<String, String>) -> Result<SnapshotRecord, CloudError> {
        let id = spec.volume_id;
        let volumes = self.cloud.node.volumes();
        let _operation = volumes.lock_snapshots()?;
        let lock = volumes.lock()?;
        let before = self.cloud.store.read::<_, CloudError>(|tx| get_volume(tx, id))?;
        let running = self.cloud.volumes().running_instance(&before)?;
        let after = continued(&before);
        volumes.create(
            &after.status.file,
            &NewFile::Overlay { base: &below(&before.status.file), size: Some(before.spec.size) },
        )?;
        let mut snapshot = SnapshotRecord {
            meta: Meta::new(new_id(), now(), tags),
            spec,
            status: store::snapshot::Status {
                size: before.spec.size,
                state: SnapshotState::Pending,
                file: before.status.file.clone(),
                backing: before.status.backing.clone(),
                image_id: before.status.image_id,
            },
        };
        // From now on, the overlay is the volume's file. It is empty until a running VMM switches to it, so it reads as
        // its backing file, which that VMM still writes.
        self.cloud.store.write::<_, CloudError>(|tx| {
            tx.put(&mut continued(&get_volume(tx, id)?))?;
            Ok(tx.insert(&mut snapshot)?)
        })?;
        drop(lock);
        if let Some(instance) = running
            && let Err(error) = self.switch(instance, &before, &after)
        {
            // A VMM that ended or did not answer may have switched: the overlay stays the volume's file, and a later
            // command completes the snapshot.
            if error.is_refusal_of_vmm() {
                self.forget(&before, &snapshot)?;
            }
            return Err(self.cloud.instances().unless_ended(instance, "the snapshot was complete", error));
        }
        self.complete(snapshot.meta.id)
    }

    fn complete(&self, id: SnapshotId) -> Result<SnapshotRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let mut snapshot: SnapshotRecord = by_id(tx, id)?;
            snapshot.status.state = SnapshotState::Completed;
            tx.put(&mut snapshot)?;
            Ok(snapshot)
        })
    }

    /// Reverts a snapshot if the VMM refused to switch to the overlay: it continues to write the previous file.
    fn forget(&self, before: &VolumeRecord, snapshot: &SnapshotRecord) -> Result<(), CloudError> {
        self.cloud.store.write::<_, CloudError>(|tx| {
            let mut volume = get_volume(tx, before.meta.id)?;
            volume.status.file.clone_from(&before.status.file);
            volume.status.backing.clone_from(&before.status.backing);
            tx.put(&mut volume)?;
            Ok(tx.remove::<SnapshotRecord>(&snapshot.meta.id.to_string())?)
        })?;
        self.cloud.sweep().volumes();
        Ok(())
    }

    /// Switches a running VMM from the files in `before` to those in `after`, even if the guest reboots meanwhile.
    fn switch(&self, instance: InstanceId, before: &VolumeRecord, after: &VolumeRecord) -> Result<(), CloudError> {
        let [before, after] = [volume_disk(before)?, volume_disk(after)?];
        Ok(self.cloud.node.instances().switch_disk(instance, &before, &after)?)
    }

    /// Deletes a snapshot. Volumes that were created from it keep the files they need.
    pub fn delete(&self, id: SnapshotId) -> Result<(), CloudError> {
        self.cloud.store.write::<_, CloudError>(|tx| Ok(tx.remove::<SnapshotRecord>(&id.to_string())?))?;
        self.cloud.sweep().volumes();
        self.cloud.sweep().images();
        Ok(())
    }

    /// Completes the snapshots of killed commands. A running VMM that has not switched to the overlay does so now.
    pub(super) fn finish_pending(&self, seen: &[SnapshotRecord], warnings: &mut Warnings) -> Result<(), CloudError> {
        if seen.iter().all(|snapshot| snapshot.status.state != SnapshotState::Pending) {
            return Ok(());
        }
        let Some(_operation) = self.cloud.node.volumes().try_lock_snapshots()? else { return Ok(()) };
        for snapshot in self.pending()? {
            match self.finish(&snapshot) {
                Ok(()) => warnings.push(format!("{}: an interrupted snapshot was completed.", snapshot.meta.id)),
                // The instance is changing its state or is unreachable. A later command completes the snapshot.
                Err(error) => log::info!("cannot complete {} yet: {error}", snapshot.meta.id),
            }
        }
        Ok(())
    }

    /// Removes the snapshots from which killed commands were creating images, unless a command is creating an image now.
    pub(super) fn remove_stray(&self, seen: &[SnapshotRecord], warnings: &mut Warnings) -> Result<(), CloudError> {
        if !seen.iter().any(|snapshot| snapshot.spec.is_for_image) {
            return Ok(());
        }
        let Some(_images) = self.cloud.node.images().try_lock()? else { return Ok(()) };
        let removed = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut strays: Vec<SnapshotRecord> = tx.list()?;
            // A pending snapshot is completed first: a running VMM may still write to its file.
            strays.retain(|record| record.spec.is_for_image && record.status.state == SnapshotState::Completed);
            strays.iter().try_for_each(|record| tx.remove::<SnapshotRecord>(&record.meta.id.to_string()))?;
            Ok(strays)
        })?;
        for SnapshotRecord { meta, .. } in &removed {
            warnings.push(format!("{}: the snapshot of an interrupted image creation was removed.", meta.id));
        }
        self.cloud.sweep().try_volumes()
    }

    fn pending(&self) -> Result<Vec<SnapshotRecord>, CloudError> {
        let mut records = self.list()?;
        records.retain(|record| record.status.state == SnapshotState::Pending);
        Ok(records)
    }

    fn finish(&self, snapshot: &SnapshotRecord) -> Result<(), CloudError> {
        let volume = self
            .cloud
            .store
            .read::<_, CloudError>(|tx| Ok(tx.get::<VolumeRecord>(&snapshot.spec.volume_id.to_string())?))?;
        if let Some(volume) = volume
            && let Some(instance) = self.cloud.volumes().running_instance(&volume)?
        {
            let mut before = volume.clone();
            before.status.file.clone_from(&snapshot.status.file);
            before.status.backing.clone_from(&snapshot.status.backing);
            self.switch(instance, &before, &volume)?;
        }
        self.complete(snapshot.meta.id).map(drop)
    }
}
