//! Reads records by their IDs, and sizes from records.

use super::error::CloudError;
use ec2::capacity::InstanceSize;
use ec2::volume::{VolumeError, VolumeFigures, VolumeSize, VolumeType};
use ec2::{Ec2Error, InstanceId, VolumeId, catalog};
use store::{InstanceRecord, Transaction, VolumeRecord};

pub(super) fn get(tx: &Transaction, id: InstanceId) -> Result<InstanceRecord, CloudError> {
    Ok(tx.get(&id.to_string())?.ok_or_else(|| InstanceId::not_found(&id.to_string()))?)
}

pub(super) fn get_volume(tx: &Transaction, id: VolumeId) -> Result<VolumeRecord, CloudError> {
    Ok(tx.get(&id.to_string())?.ok_or_else(|| VolumeId::not_found(&id.to_string()))?)
}

pub(super) fn volumes_of(tx: &Transaction, record: &InstanceRecord) -> Result<Vec<VolumeRecord>, CloudError> {
    let ids = record.block_devices.iter().map(|device| device.volume_id.to_string());
    let volumes = ids.map(|id| tx.get::<VolumeRecord>(&id)).collect::<Result<Vec<_>, _>>()?;
    Ok(volumes.into_iter().flatten().collect())
}

pub(super) fn size_of(record: &InstanceRecord) -> Result<InstanceSize, CloudError> {
    let instance_type = catalog::find(&record.instance_type)?;
    Ok(InstanceSize { instance_type, vcpus: record.vcpus, memory_mib: record.memory_mib })
}

pub(super) fn figures_of(record: &VolumeRecord) -> Result<VolumeFigures, CloudError> {
    let volume_type: VolumeType = record.volume_type.parse()?;
    let size = VolumeSize::that_holds(record.size).ok_or(VolumeError::NoSize).map_err(Ec2Error::from)?;
    Ok(VolumeFigures { size, volume_type, iops: record.iops, throughput: record.throughput })
}
