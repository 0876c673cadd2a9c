//! Removes the files of volumes, snapshots and images that no record refers to.

use std::collections::BTreeSet;

use super::Cloud;
use super::error::CloudError;
use ec2::ImageId;
use node::embedded;
use node::local::VOLUMES;
use store::{ImageRecord, InstanceRecord, SnapshotRecord, Transaction, VolumeRecord};

#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Sweep<'_> {
    /// Removes the files of deleted volumes and snapshots, unless they are backing files of others. A failure is only
    /// logged: the user asked for something else, and the next command tries again.
    pub(super) fn volumes(&self) {
        if let Err(error) = self.try_volumes() {
            log::warn!("cannot remove the files of deleted volumes; the next command will try again: {error}");
        }
    }

    pub(super) fn try_volumes(&self) -> Result<(), CloudError> {
        let volumes = self.cloud.node.volumes();
        let _lock = volumes.lock()?;
        // Nothing is removed if the backing files of a volume or snapshot are unknown.
        let Some(kept) = self.kept_volumes()? else { return Ok(()) };
        Ok(volumes.sweep(&kept)?)
    }

    /// Returns the names of the files in the volumes directory that volumes and snapshots use. Returns `None` if the
    /// backing files of one of them are unknown.
    fn kept_volumes(&self) -> Result<Option<BTreeSet<String>>, CloudError> {
        self.cloud.store.read(|tx| {
            let (volumes, snapshots) = (tx.list_whole::<VolumeRecord>()?, tx.list_whole::<SnapshotRecord>()?);
            Ok(kept(&volumes, &snapshots).map(|names| names.into_iter().map(String::from).collect()))
        })
    }

    /// Returns true if the volumes directory has files that none of these volumes and snapshots use.
    pub(super) fn has_stray_volumes(
        &self,
        volumes: &[VolumeRecord],
        snapshots: &[SnapshotRecord],
    ) -> Result<bool, CloudError> {
        let Some(kept) = kept(volumes, snapshots) else { return Ok(false) };
        Ok(self.cloud.node.volumes().list()?.iter().any(|name| !kept.contains(name.as_str())))
    }

    /// Removes the files of unused deregistered images. A failure is only logged: the user asked for something else, and
    /// a later command tries again.
    pub(super) fn images(&self) {
        let lock = self.cloud.node.images().lock().map_err(CloudError::from);
        if let Err(error) = lock.and_then(|_lock| self.images_locked()) {
            log::warn!("cannot remove the files of deregistered images; a later command will try again: {error}");
        }
    }

    /// Removes image files that killed commands left, unless another command is creating an image.
    pub(super) fn stray_images(&self, known: &[ImageRecord]) -> Result<(), CloudError> {
        let images = self.cloud.node.images();
        let found = images.list()?;
        let is_stray = |id: &ImageId| *id != embedded::id() && !known.iter().any(|record| record.meta.id == *id);
        if (found.has_unfinished || found.ids.iter().any(is_stray))
            && let Some(_lock) = images.try_lock()?
        {
            self.images_locked()?;
        }
        Ok(())
    }

    fn images_locked(&self) -> Result<(), CloudError> {
        let kept: Vec<ImageId> = self.cloud.store.write::<_, CloudError>(|tx| {
            let used = images_in_use(tx)?;
            let mut kept = vec![embedded::id()];
            for record in tx.list_whole::<ImageRecord>()? {
                if record.status.deregistered.is_none() || used.contains(&record.meta.id) {
                    kept.push(record.meta.id);
                } else {
                    tx.remove::<ImageRecord>(&record.meta.id.to_string())?;
                }
            }
            Ok(kept)
        })?;
        Ok(self.cloud.node.images().sweep(&kept)?)
    }
}

/// Returns the names of the files in the volumes directory that volumes and snapshots use. Returns `None` if the backing
/// files of one of them are unknown.
fn kept<'a>(volumes: &'a [VolumeRecord], snapshots: &'a [SnapshotRecord]) -> Option<BTreeSet<&'a str>> {
    let volumes = volumes.iter().map(|volume| (&volume.status.file, &volume.status.backing));
    let snapshots = snapshots.iter().map(|snapshot| (&snapshot.status.file, &snapshot.status.backing));
    let mut kept = BTreeSet::new();
    for (file, backing) in volumes.chain(snapshots) {
        kept.insert(file.as_str());
        kept.extend(backing.as_ref()?.iter().filter_map(|layer| layer.file.strip_prefix(VOLUMES)));
    }
    Some(kept)
}

/// Returns the images that volumes or snapshots are based on, and those whose kernels instances boot.
fn images_in_use(tx: &Transaction) -> Result<Vec<ImageId>, CloudError> {
    let mut used: Vec<ImageId> = tx.list_whole::<InstanceRecord>()?.iter().map(|record| record.spec.image_id).collect();
    used.extend(tx.list_whole::<VolumeRecord>()?.iter().filter_map(|record| record.status.image_id));
    used.extend(tx.list_whole::<SnapshotRecord>()?.iter().filter_map(|record| record.status.image_id));
    Ok(used)
}
