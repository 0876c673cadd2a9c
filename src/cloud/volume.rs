//! EBS volumes.
//!
//! A volume's writes go to one qcow2 file: a standalone file, or an overlay over the file of a snapshot or an image.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::CloudError;
use super::hibernate::refuse_hibernated;
use super::layers;
use super::limits::volume_limits;
use super::lookup::{figures_of, get, get_volume, volumes_of};
use super::names::{ROOT_DEVICE, volume_file};
use super::{Cloud, new_id, now, resolve};
use ec2::block_device::DeviceName;
use ec2::state::{Action, InstanceState};
use ec2::volume::{Role, VolumeChange, VolumeSize, VolumeSpec, VolumeState};
use ec2::{ErrorCode, InstanceId, VolumeId};
use node::host::{NewFile, VolumeDisk};
use store::{AttachmentRecord, BlockDeviceMapping, InstanceRecord, Meta, SnapshotRecord, VolumeRecord};

/// Timeout for the VMM of a running instance to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    pub spec: VolumeSpec,
    pub snapshot: Option<String>,
    pub tags: BTreeMap<String, String>,
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
        let mut record = self.make(&new.spec, source.as_ref(), new.tags.clone())?;
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

    /// Attaches a volume to a stopped or running instance. Returns the volume's record with the device name.
    pub fn attach(
        &self,
        id: VolumeId,
        instance: InstanceId,
        device: Option<DeviceName>,
        delete_on_termination: bool,
    ) -> Result<VolumeRecord, CloudError> {
        let (volume, record) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, instance)?;
            Action::ChangeVolumes.allowed(instance, record.status.state)?;
            refuse_hibernated(self.cloud, &record)?;
            let mut volume = get_volume(tx, id)?;
            attach(&mut record, &mut volume, device, delete_on_termination)?;
            tx.put(&mut volume)?;
            tx.put(&mut record)?;
            Ok((volume, record))
        })?;
        let limits = volume_limits(&volume).filter(|_| !record.spec.no_limits);
        let disk = VolumeDisk { limits, ..layers::volume_disk(&volume)? };
        if record.status.state == InstanceState::Running
            && let Err(error) = self.cloud.node.instances().attach_disk(instance, &disk)
        {
            self.forget_attachment(id, instance)?;
            return Err(self.cloud.instances().unless_ended(instance, "the volume was attached", error));
        }
        Ok(volume)
    }

    /// Detaches a volume from its instance. The guest should have unmounted its file systems.
    pub fn detach(&self, id: VolumeId, force: bool) -> Result<VolumeRecord, CloudError> {
        let record = self.cloud.store.read::<_, CloudError>(|tx| {
            let volume = get_volume(tx, id)?;
            let Some(attachment) = &volume.status.attachment else {
                return Err(CloudError::refused(
                    ErrorCode::IncorrectState,
                    format!(
                        "The volume '{id}' is {}: it is not attached to an instance.",
                        volume.status.state.as_str()
                    ),
                    None,
                ));
            };
            let record = get(tx, attachment.instance_id)?;
            Action::ChangeVolumes.allowed(record.meta.id, record.status.state)?;
            refuse_hibernated(self.cloud, &record)?;
            Ok(record)
        })?;
        if record.root().is_some_and(|root| root.volume_id == id) {
            let what = format!("The volume '{id}' is the root volume of {} and cannot be detached.", record.meta.id);
            return Err(CloudError::refused(ErrorCode::OperationNotPermitted, what, None));
        }
        if record.status.state == InstanceState::Running {
            let detached = self.cloud.node.instances().detach_disk(record.meta.id, id, force);
            detached.map_err(|error| {
                self.cloud.instances().unless_ended(record.meta.id, "the volume was detached", error)
            })?;
        }
        self.forget_attachment(id, record.meta.id)?;
        self.find(&id.to_string())
    }

    /// Removes a volume's attachment to `instance` from both records. Does nothing if it is not attached to `instance`.
    fn forget_attachment(&self, id: VolumeId, instance: InstanceId) -> Result<(), CloudError> {
        self.cloud.store.write(|tx| {
            let mut volume = get_volume(tx, id)?;
            let attached = volume.status.attachment.take();
            if attached.is_none_or(|attachment| attachment.instance_id != instance) {
                return Ok(());
            }
            if let Some(mut record) = tx.get::<InstanceRecord>(&instance.to_string())? {
                record.status.block_devices.retain(|device| device.volume_id != id);
                tx.put(&mut record)?;
            }
            volume.status.state = VolumeState::Available;
            Ok(tx.put(&mut volume)?)
        })
    }

    /// Changes a volume's size, type and performance. A running guest sees the new size.
    pub fn modify(&self, id: VolumeId, change: &VolumeChange) -> Result<VolumeRecord, CloudError> {
        let record = self.cloud.store.read::<_, CloudError>(|tx| get_volume(tx, id))?;
        let figures = figures_of(&record)?.modified(change, role_of(&record))?;
        if figures.size.bytes() > record.spec.size {
            self.grow(&record, figures.size.bytes())?;
        }
        let record = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get_volume(tx, id)?;
            // Another command may have changed the volume while its file grew.
            let figures = figures_of(&record)?.modified(change, role_of(&record))?;
            record.spec.size = figures.size.bytes().max(record.spec.size);
            record.spec.volume_type = figures.volume_type.as_str().into();
            (record.spec.iops, record.spec.throughput) = (figures.iops, figures.throughput);
            tx.put(&mut record)?;
            Ok(record)
        })?;
        self.cloud.instances().apply_volume_limits(&record)?;
        Ok(record)
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

/// Records the attachment of a volume to an instance in both records, which the caller then stores.
pub(super) fn attach(
    record: &mut InstanceRecord,
    volume: &mut VolumeRecord,
    device: Option<DeviceName>,
    delete_on_termination: bool,
) -> Result<(), CloudError> {
    if let Some(attachment) = &volume.status.attachment {
        return Err(in_use(volume, attachment));
    }
    let used: Vec<DeviceName> =
        record.status.block_devices.iter().filter_map(|known| known.device_name.parse().ok()).collect();
    let name = match device {
        Some(name) => name.unless_used(&used)?,
        None => DeviceName::next_free(&used)?,
    };
    let device_name = name.as_str().to_string();
    let attachment =
        AttachmentRecord { instance_id: record.meta.id, device_name, attach_time: now(), delete_on_termination };
    record.status.block_devices.push(BlockDeviceMapping::of(volume.meta.id, &attachment));
    volume.status.attachment = Some(attachment);
    volume.status.state = VolumeState::InUse;
    Ok(())
}

fn in_use(volume: &VolumeRecord, attachment: &AttachmentRecord) -> CloudError {
    let (id, instance) = (volume.meta.id, attachment.instance_id);
    let what = format!("The volume '{id}' is attached to {instance} as {}.", attachment.device_name);
    CloudError::refused(ErrorCode::VolumeInUse, what, Some(format!("Detach it with `wisp volume detach {id}`.")))
}

fn role_of(record: &VolumeRecord) -> Role {
    if record.status.attachment.as_ref().is_some_and(|attachment| attachment.device_name == ROOT_DEVICE) {
        Role::Root
    } else {
        Role::Data
    }
}
