//! Attaches volumes to instances and detaches them.
//!
//! The records say that a volume is being attached or detached for as long as a running machine may or may not have its
//! disk. A command holds the disk's lock for that time. If the lock is free, the command was killed: then the next
//! command detaches the volume.

use super::error::CloudError;
use super::hibernate::refuse_hibernated;
use super::layers::volume_disk;
use super::limits::volume_limits;
use super::lookup::{get, get_volume};
use super::volume::Volumes;
use super::{Warnings, now};
use ec2::block_device::DeviceName;
use ec2::state::{Action, InstanceState};
use ec2::volume::{AttachmentState, VolumeState};
use ec2::{ErrorCode, InstanceId, VolumeId};
use node::host::{Guard, InstanceLock, VolumeDisk};
use store::{AttachmentRecord, BlockDeviceMapping, InstanceRecord, Transaction, VolumeRecord};

impl Volumes<'_> {
    /// Attaches a volume to a stopped or running instance. Returns the volume's record with the device name.
    pub fn attach(
        &self,
        id: VolumeId,
        instance: InstanceId,
        device: Option<DeviceName>,
        delete_on_termination: bool,
    ) -> Result<VolumeRecord, CloudError> {
        let _lock = self.lock_disk(id, instance)?;
        let (volume, record) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, instance)?;
            Action::ChangeVolumes.allowed(instance, record.status.state)?;
            refuse_hibernated(self.cloud, &record)?;
            let mut volume = get_volume(tx, id)?;
            attach(&mut record, &mut volume, device, delete_on_termination)?;
            if record.status.state == InstanceState::Running {
                set_state(&mut volume, AttachmentState::Attaching);
            }
            tx.put(&mut volume)?;
            tx.put(&mut record)?;
            Ok((volume, record))
        })?;
        if record.status.state != InstanceState::Running {
            return Ok(volume);
        }
        let limits = volume_limits(&volume).filter(|_| !record.spec.no_limits);
        let disk = VolumeDisk { limits, ..volume_disk(&volume)? };
        if let Err(error) = self.cloud.node.instances().attach_disk(instance, &disk) {
            self.forget_attachment(id, instance)?;
            return Err(self.cloud.instances().unless_ended(instance, "the volume was attached", error));
        }
        self.settle_attached(id, instance)
    }

    /// Detaches a volume from its instance. The guest should have unmounted its file systems.
    pub fn detach(&self, id: VolumeId, force: bool) -> Result<VolumeRecord, CloudError> {
        let instance = self.cloud.store.read(|tx| Ok::<_, CloudError>(self.detachable(tx, id)?.1.meta.id))?;
        let _lock = self.lock_disk(id, instance)?;
        let record = self.cloud.store.write::<_, CloudError>(|tx| {
            let (mut volume, record) = self.detachable(tx, id)?;
            if record.status.state == InstanceState::Running {
                set_state(&mut volume, AttachmentState::Detaching);
                tx.put(&mut volume)?;
            }
            Ok(record)
        })?;
        let instance = record.meta.id;
        if record.status.state == InstanceState::Running
            && let Err(error) = self.cloud.node.instances().detach_disk(instance, id, force)
        {
            self.settle_attached(id, instance)?;
            return Err(self.cloud.instances().unless_ended(instance, "the volume was detached", error));
        }
        self.forget_attachment(id, instance)?;
        self.find(&id.to_string())
    }

    /// Returns a volume that can be detached, and its instance.
    fn detachable(&self, tx: &Transaction, id: VolumeId) -> Result<(VolumeRecord, InstanceRecord), CloudError> {
        let volume = get_volume(tx, id)?;
        let Some(attachment) = &volume.status.attachment else {
            let state = volume.status.state.as_str();
            let what = format!("The volume '{id}' is {state}: it is not attached to an instance.");
            return Err(CloudError::refused(ErrorCode::IncorrectState, what, None));
        };
        let record = get(tx, attachment.instance_id)?;
        Action::ChangeVolumes.allowed(record.meta.id, record.status.state)?;
        refuse_hibernated(self.cloud, &record)?;
        if record.root().is_some_and(|root| root.volume_id == id) {
            let what = format!("The volume '{id}' is the root volume of {} and cannot be detached.", record.meta.id);
            return Err(CloudError::refused(ErrorCode::OperationNotPermitted, what, None));
        }
        Ok((volume, record))
    }

    /// Takes the lock of a volume's disk in an instance. Returns `None` if the host does not have the instance.
    fn lock_disk(&self, id: VolumeId, instance: InstanceId) -> Result<Option<Guard>, CloudError> {
        match self.cloud.node.instances().lock_disk(instance, id)? {
            InstanceLock::Taken(lock) => Ok(Some(lock)),
            InstanceLock::Missing => Ok(None),
            InstanceLock::Held => {
                let what = format!("The volume '{id}' is being attached or detached by another command.");
                Err(CloudError::refused(ErrorCode::IncorrectState, what, None))
            }
        }
    }

    /// Records that a running instance has its volume.
    fn settle_attached(&self, id: VolumeId, instance: InstanceId) -> Result<VolumeRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let mut volume = get_volume(tx, id)?;
            if volume.status.attachment.as_ref().is_some_and(|attachment| attachment.instance_id == instance) {
                set_state(&mut volume, AttachmentState::Attached);
                tx.put(&mut volume)?;
            }
            Ok(volume)
        })
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

    /// Detaches the volumes that killed commands were attaching or detaching.
    pub(super) fn finish_interrupted(&self, volumes: &[VolumeRecord], warnings: &mut Warnings) {
        for volume in volumes {
            let id = volume.meta.id;
            if let Some(attachment) = unsettled(volume) {
                let finished = self.finish(id, attachment.instance_id, warnings);
                warnings.push_failed(&format!("cannot detach {id}, whose attachment was interrupted"), finished);
            }
        }
    }

    fn finish(&self, id: VolumeId, instance: InstanceId, warnings: &mut Warnings) -> Result<(), CloudError> {
        let instances = self.cloud.node.instances();
        let InstanceLock::Taken(_lock) = instances.lock_disk(instance, id)? else { return Ok(()) };
        // The command may have completed before the lock was taken.
        let (volume, state) =
            self.cloud.store.read::<_, CloudError>(|tx| Ok((get_volume(tx, id)?, get(tx, instance)?.status.state)))?;
        let Some(attachment) = unsettled(&volume).filter(|attachment| attachment.instance_id == instance) else {
            return Ok(());
        };
        match state {
            // The user asked for a detachment, but not for a forced one.
            InstanceState::Running if attachment.state == AttachmentState::Detaching => {
                if let Err(error) = instances.detach_disk(instance, id, false) {
                    self.settle_attached(id, instance)?;
                    return Err(error.into());
                }
            }
            InstanceState::Running => instances.detach_disk(instance, id, true)?,
            InstanceState::Stopped => {}
            // A later command knows whether the machine runs.
            _ => return Ok(()),
        }
        self.forget_attachment(id, instance)?;
        warnings.push(format!("{id}: an interrupted change was completed; the volume is now detached."));
        Ok(())
    }
}

/// Returns a volume's attachment if a command is changing it, or was killed while it changed it.
fn unsettled(volume: &VolumeRecord) -> Option<&AttachmentRecord> {
    volume.status.attachment.as_ref().filter(|attachment| attachment.state != AttachmentState::Attached)
}

fn set_state(volume: &mut VolumeRecord, state: AttachmentState) {
    if let Some(attachment) = &mut volume.status.attachment {
        attachment.state = state;
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
    let attachment = AttachmentRecord {
        instance_id: record.meta.id,
        device_name,
        attach_time: now(),
        delete_on_termination,
        state: AttachmentState::Attached,
    };
    record.status.block_devices.push(BlockDeviceMapping::of(volume.meta.id, &attachment));
    volume.status.attachment = Some(attachment);
    volume.status.state = VolumeState::InUse;
    Ok(())
}

pub(super) fn in_use(volume: &VolumeRecord, attachment: &AttachmentRecord) -> CloudError {
    let (id, instance) = (volume.meta.id, attachment.instance_id);
    let what = format!("The volume '{id}' is attached to {instance} as {}.", attachment.device_name);
    CloudError::refused(ErrorCode::VolumeInUse, what, Some(format!("Detach it with `wisp volume detach {id}`.")))
}
