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
use store::{AttachmentRecord, BlockDeviceMapping, InstanceRecord, SnapshotRecord, VolumeRecord};

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
        records.sort_by_key(|record| (record.created, record.id));
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
        let record = self.make(&new.spec, source.as_ref(), new.tags.clone())?;
        let inserted = self.cloud.store.write::<_, CloudError>(|tx| Ok(tx.insert(&record)?));
        if inserted.is_err() {
            // Without a record, no volume owns the file.
            let _ = self.cloud.node.volumes().remove(&record.file);
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
        let source_size = source.and_then(|snapshot| VolumeSize::that_holds(snapshot.size));
        let figures = spec.figures(source_size, Role::Data)?;
        let id: VolumeId = new_id();
        let file = volume_file(id, 1);
        let size = figures.size.bytes();
        let volumes = self.cloud.node.volumes();
        match source {
            Some(snapshot) => {
                volumes.create(&file, &NewFile::Overlay { base: &layers::below(&snapshot.file), size: Some(size) })?
            }
            None => volumes.create(&file, &NewFile::Empty { size })?,
        };
        Ok(VolumeRecord {
            id,
            size,
            volume_type: figures.volume_type.as_str().into(),
            iops: figures.iops,
            throughput: figures.throughput,
            state: VolumeState::Available,
            created: now(),
            snapshot_id: source.map(|snapshot| snapshot.id),
            image_id: source.and_then(|snapshot| snapshot.image_id),
            file,
            backing: source
                .map_or(Some(Vec::new()), |snapshot| layers::over(&snapshot.file, snapshot.backing.as_deref())),
            generation: 1,
            attachment: None,
            tags,
        })
    }

    pub fn delete(&self, id: VolumeId) -> Result<(), CloudError> {
        self.cloud.store.write::<_, CloudError>(|tx| {
            let record = get_volume(tx, id)?;
            if let Some(attachment) = &record.attachment {
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
            Action::ChangeVolumes.allowed(instance, record.state)?;
            refuse_hibernated(self.cloud, &record)?;
            let mut volume = get_volume(tx, id)?;
            attach(&mut record, &mut volume, device, delete_on_termination)?;
            tx.put(&volume)?;
            tx.put(&record)?;
            Ok((volume, record))
        })?;
        let limits = volume_limits(&volume).filter(|_| !record.no_limits);
        let disk = VolumeDisk { limits, ..layers::volume_disk(&volume)? };
        if record.state == InstanceState::Running
            && let Err(error) = self.cloud.node.instances().attach_disk(instance, &disk)
        {
            self.forget_attachment(id)?;
            return Err(self.cloud.instances().unless_ended(instance, "the volume was attached", error));
        }
        Ok(volume)
    }

    /// Detaches a volume from its instance. The guest should have unmounted its file systems.
    pub fn detach(&self, id: VolumeId, force: bool) -> Result<VolumeRecord, CloudError> {
        let record = self.cloud.store.read::<_, CloudError>(|tx| {
            let volume = get_volume(tx, id)?;
            let Some(attachment) = &volume.attachment else {
                return Err(CloudError::refused(
                    ErrorCode::IncorrectState,
                    format!("The volume '{id}' is {}: it is not attached to an instance.", volume.state.as_str()),
                    None,
                ));
            };
            let record = get(tx, attachment.instance_id)?;
            Action::ChangeVolumes.allowed(record.id, record.state)?;
            refuse_hibernated(self.cloud, &record)?;
            Ok(record)
        })?;
        if record.root().is_some_and(|root| root.volume_id == id) {
            let what = format!("The volume '{id}' is the root volume of {} and cannot be detached.", record.id);
            return Err(CloudError::refused(ErrorCode::OperationNotPermitted, what, None));
        }
        if record.state == InstanceState::Running {
            let detached = self.cloud.node.instances().detach_disk(record.id, id, force);
            detached
                .map_err(|error| self.cloud.instances().unless_ended(record.id, "the volume was detached", error))?;
        }
        self.forget_attachment(id)?;
        self.find(&id.to_string())
    }

    fn forget_attachment(&self, id: VolumeId) -> Result<(), CloudError> {
        self.cloud.store.write(|tx| {
            let mut volume = get_volume(tx, id)?;
            if let Some(attachment) = volume.attachment.take()
                && let Some(mut record) = tx.get::<InstanceRecord>(&attachment.instance_id.to_string())?
            {
                record.block_devices.retain(|device| device.volume_id != id);
                tx.put(&record)?;
            }
            volume.state = VolumeState::Available;
            Ok(tx.put(&volume)?)
        })
    }

    /// Changes a volume's size, type and performance. A running guest sees the new size.
    pub fn modify(&self, id: VolumeId, change: &VolumeChange) -> Result<VolumeRecord, CloudError> {
        let record = self.cloud.store.read::<_, CloudError>(|tx| get_volume(tx, id))?;
        let figures = figures_of(&record)?.modified(change, role_of(&record))?;
        if figures.size.bytes() > record.size {
            self.grow(&record, figures.size.bytes())?;
        }
        let record = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get_volume(tx, id)?;
            record.size = figures.size.bytes().max(record.size);
            record.volume_type = figures.volume_type.as_str().into();
            (record.iops, record.throughput) = (figures.iops, figures.throughput);
            tx.put(&record)?;
            Ok(record)
        })?;
        self.cloud.instances().apply_volume_limits(&record)?;
        Ok(record)
    }

    fn grow(&self, record: &VolumeRecord, size: u64) -> Result<(), CloudError> {
        match self.running_instance(record)? {
            Some(instance) => Ok(self.cloud.node.instances().resize_disk(instance, record.id, size)?),
            None => Ok(self.cloud.node.volumes().grow(&layers::volume_files(record)?, size)?),
        }
    }

    /// Returns the instance to which the volume is attached, if it is running. Fails if the instance is hibernated,
    /// changing its state, or not reachable.
    pub(super) fn running_instance(&self, record: &VolumeRecord) -> Result<Option<InstanceId>, CloudError> {
        let Some(attachment) = &record.attachment else { return Ok(None) };
        let instance = self.cloud.store.read::<_, CloudError>(|tx| get(tx, attachment.instance_id))?;
        match instance.state {
            InstanceState::Running => {
                self.cloud.node.instances().status(instance.id, ANSWER_TIMEOUT)?;
                Ok(Some(instance.id))
            }
            InstanceState::Stopped => refuse_hibernated(self.cloud, &instance).map(|()| None),
            state => Err(instance.id.incorrect_state(state.as_str(), "modified").into()),
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
    if let Some(attachment) = &volume.attachment {
        return Err(in_use(volume, attachment));
    }
    let used: Vec<DeviceName> =
        record.block_devices.iter().filter_map(|known| known.device_name.parse().ok()).collect();
    let name = match device {
        Some(name) => name.unless_used(&used)?,
        None => DeviceName::next_free(&used)?,
    };
    let device_name = name.as_str().to_string();
    let attachment =
        AttachmentRecord { instance_id: record.id, device_name, attach_time: now(), delete_on_termination };
    record.block_devices.push(BlockDeviceMapping::of(volume.id, &attachment));
    volume.attachment = Some(attachment);
    volume.state = VolumeState::InUse;
    Ok(())
}

fn in_use(volume: &VolumeRecord, attachment: &AttachmentRecord) -> CloudError {
    let (id, instance) = (volume.id, attachment.instance_id);
    let what = format!("The volume '{id}' is attached to {instance} as {}.", attachment.device_name);
    CloudError::refused(ErrorCode::VolumeInUse, what, Some(format!("Detach it with `wisp volume detach {id}`.")))
}

fn role_of(record: &VolumeRecord) -> Role {
    if record.attachment.as_ref().is_some_and(|attachment| attachment.device_name == ROOT_DEVICE) {
        Role::Root
    } else {
        Role::Data
    }
}
