//! EBS volumes.
//!
//! A volume's writes go to one qcow2 file: a standalone file, or an overlay over the file of a snapshot or an image.

use std::collections::BTreeMap;
use std::time::Duration;

use super::attachment::in_use;
use super::error::CloudError;
use super::hibernate::refuse_hibernated;
use super::layers;
use super::lookup::{figures_of, get, get_volume, volumes_of, with_token};
use super::names::{ROOT_DEVICE, volume_file};
use super::{Cloud, new_id, now, resolve};
use ec2::network::Zone;
use ec2::state::InstanceState;
use ec2::volume::{Role, VolumeChange, VolumeSize, VolumeSpec, VolumeState};
use ec2::{InstanceId, VolumeId};
use node::host::NewFile;
use store::{FiguresRecord, InstanceRecord, Meta, ModificationRecord, SnapshotRecord, VolumeRecord};

/// Timeout for the VMM of a running instance to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    pub spec: VolumeSpec,
    pub snapshot: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub zone: Option<Zone>,
    /// Two requests with the same token create one volume.
    pub client_token: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Volumes<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Volumes<'_> {
    pub fn list(&self) -> Result<Vec<VolumeRecord>, CloudError> {
        let mut records: Vec<VolumeRecord> = self.cloud.records()?;
        records.sort_by_key(|record| (record.meta.created, record.meta.id));
        Ok(records)
    }

    pub fn find(&self, reference: &str) -> Result<VolumeRecord, CloudError> {
        self.cloud.store.read(|tx| resolve::volume(tx, reference))
    }

    /// Returns an instance's volumes in the order of its block devices.
    pub fn of(&self, record: &InstanceRecord) -> Result<Vec<VolumeRecord>, CloudError> {
        self.cloud.store.read(|tx| volumes_of(tx, record))
    }

    pub fn create(&self, new: &NewVolume) -> Result<VolumeRecord, CloudError> {
        let find = |reference: &String| self.cloud.store.read(|tx| resolve::snapshot(tx, reference));
        let source = new.snapshot.as_ref().map(find).transpose()?;
        let _lock = self.cloud.node.volumes().lock()?;
        let token = new.client_token.as_deref();
        let is_same = |known: &VolumeRecord| is_repeated(known, new, source.as_ref());
        if let Some(existing) = self.cloud.store.read(|tx| with_token(tx, token, "volume", is_same))? {
            return Ok(existing);
        }
        let mut record = self.make(&new.spec, source.as_ref(), new.tags.clone())?;
        record.spec.zone = new.zone;
        record.meta.client_token.clone_from(&new.client_token);
        let inserted = self.cloud.store.write::<_, CloudError>(|tx| Ok(tx.insert(&mut record)?));
        if inserted.is_err() {
            // Without a record, no volume owns the file.
            let _ = self.cloud.node.volumes().remove(&record.status.file);
        }
        inserted.map(|()| record)
    }

    /// Creates a volume's file. The caller holds the volumes lock and inserts the record.
    pub(super) fn make(
        &self,
        spec: &VolumeSpec,
        source: Option<&SnapshotRecord>,
        tags: BTreeMap<String, String>,
    ) -> Result<VolumeRecord, CloudError> {
        let source_size = source.and_then(|snapshot| VolumeSize::that_holds(snapshot.status.size));
        let figures = spec.figures(source_size, Role::Data)?;
        let id: VolumeId = new_id();
        let file = volume_file(id, 1);
        let size = figures.size.bytes();
        let volumes = self.cloud.node.volumes();
        match source {
            Some(snapshot) => volumes
                .create(&file, &NewFile::Overlay { base: &layers::below(&snapshot.status.file), size: Some(size) })?,
            None => volumes.create(&file, &NewFile::Empty { size })?,
        };
        Ok(VolumeRecord {
            meta: Meta::new(id, now(), tags),
            spec: store::volume::Spec {
                size,
                volume_type: figures.volume_type.as_str().into(),
                iops: figures.iops,
                throughput: figures.throughput,
                snapshot_id: source.map(|snapshot| snapshot.meta.id),
                zone: None,
            },
            status: store::volume::Status {
                state: VolumeState::Available,
                image_id: source.and_then(|snapshot| snapshot.status.image_id),
                file,
                file_number: 1,
                backing: source.map_or(Some(Vec::new()), |snapshot| {
                    layers::over(&snapshot.status.file, snapshot.status.backing.as_deref())
                }),
                attachment: None,
                modification: None,
            },
        })
    }

    pub fn delete(&self, id: VolumeId) -> Result<(), CloudError> {
        self.cloud.store.write::<_, CloudError>(|tx| {
            let record = get_volume(tx, id)?;
            if let Some(attachment) = &record.status.attachment {
                return Err(in_use(&record, attachment));
            }
            Ok(tx.remove::<VolumeRecord>(&id.to_string())?)
        })?;
        self.cloud.sweep().volumes();
        self.cloud.sweep().images();
        Ok(())
    }

    /// Changes a volume's size, type and performance. A running guest sees the new size.
    pub fn modify(&self, id: VolumeId, change: &VolumeChange) -> Result<VolumeRecord, CloudError> {
        let start_time = now();
        let record = self.cloud.store.read::<_, CloudError>(|tx| get_volume(tx, id))?;
        let figures = figures_of(&record)?.modified(change, role_of(&record))?;
        if figures.size.bytes() > record.spec.size {
            self.grow(&record, figures.size.bytes())?;
        }
        let (record, modified) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get_volume(tx, id)?;
            let original = FiguresRecord::of(&record.spec);
            let modified = modify(&mut record, change, figures.size.bytes());
            let target = FiguresRecord::of(&record.spec);
            record.status.modification = Some(ModificationRecord { original, target, start_time, end_time: now() });
            tx.put(&mut record)?;
            Ok((record, modified))
        })?;
        self.cloud.instances().apply_volume_limits(&record)?;
        modified.map(|()| record)
    }

    fn grow(&self, record: &VolumeRecord, size: u64) -> Result<(), CloudError> {
        match self.running_instance(record)? {
            Some(instance) => Ok(self.cloud.node.instances().resize_disk(instance, record.meta.id, size)?),
            None => Ok(self.cloud.node.volumes().grow(&layers::volume_files(record)?, size)?),
        }
    }

    /// Returns the instance to which the volume is attached, if it is running. Fails if the instance is hibernated,
    /// changing its state, or not reachable.
    pub(super) fn running_instance(&self, record: &VolumeRecord) -> Result<Option<InstanceId>, CloudError> {
        let Some(attachment) = &record.status.attachment else { return Ok(None) };
        let instance = self.cloud.store.read::<_, CloudError>(|tx| get(tx, attachment.instance_id))?;
        match instance.status.state {
            InstanceState::Running => {
                self.cloud.node.instances().status(instance.meta.id, ANSWER_TIMEOUT)?;
                Ok(Some(instance.meta.id))
            }
            InstanceState::Stopped => refuse_hibernated(self.cloud, &instance).map(|()| None),
            state => Err(instance.meta.id.incorrect_state(state.as_str(), "modified").into()),
        }
    }
}

/// Changes the record of a volume whose file now has at least `size` bytes. Another command may have changed the record
/// while the file grew, so the change may be refused. The record gets the new size in any case.
fn modify(record: &mut VolumeRecord, change: &VolumeChange, size: u64) -> Result<(), CloudError> {
    let figures = figures_of(record).and_then(|figures| Ok(figures.modified(change, role_of(record))?));
    record.spec.size = size.max(record.spec.size);
    let figures = figures?;
    record.spec.volume_type = figures.volume_type.as_str().into();
    (record.spec.iops, record.spec.throughput) = (figures.iops, figures.throughput);
    Ok(())
}

fn role_of(record: &VolumeRecord) -> Role {
    if record.status.attachment.as_ref().is_some_and(|attachment| attachment.device_name == ROOT_DEVICE) {
        Role::Root
    } else {
        Role::Data
    }
}

/// Returns true if a request asks for the volume that an earlier one created.
fn is_repeated(existing: &VolumeRecord, new: &NewVolume, source: Option<&SnapshotRecord>) -> Result<bool, CloudError> {
    let source_size = source.and_then(|snapshot| VolumeSize::that_holds(snapshot.status.size));
    let figures = new.spec.figures(source_size, Role::Data)?;
    let asked = FiguresRecord {
        size: figures.size.bytes(),
        volume_type: figures.volume_type.as_str().into(),
        iops: figures.iops,
        throughput: figures.throughput,
    };
    let modified = existing.status.modification.as_ref();
    let made = modified.map_or_else(|| FiguresRecord::of(&existing.spec), |modified| modified.original.clone());
    let snapshot = source.map(|snapshot| snapshot.meta.id);
    Ok((asked, snapshot, new.zone) == (made, existing.spec.snapshot_id, existing.spec.zone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::home::Home;

    const GIB: u64 = 1 << 30;

    #[test]
    fn refused_modification_keeps_size_of_grown_file() {
        let dir = tempfile::tempdir().unwrap();
        let cloud = Cloud::at(Home::at(dir.path()).unwrap()).unwrap();
        let spec = VolumeSpec { size: VolumeSize::from_gib(1), ..VolumeSpec::default() };
        let mut volume = cloud.volumes().create(&NewVolume { spec, ..NewVolume::default() }).unwrap();
        // Another command changed the type to one whose maximum is 1 TiB.
        volume.spec.volume_type = "standard".into();
        let change = VolumeChange { size: VolumeSize::from_gib(2048), ..VolumeChange::default() };
        let refused = modify(&mut volume, &change, 2048 * GIB).unwrap_err();
        assert!(refused.to_string().contains("standard"), "{refused}");
        assert_eq!(volume.spec.size, 2048 * GIB);
        assert_eq!(volume.spec.volume_type, "standard");
    }
}
