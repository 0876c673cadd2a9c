//! Reads records by their IDs, and sizes from records.

use super::error::CloudError;
use ec2::capacity::InstanceSize;
use ec2::id::{Id, ResourceKind};
use ec2::volume::{VolumeFigures, VolumeSize, VolumeType, no_size};
use ec2::{ErrorCode, InstanceId, VolumeId, catalog};
use store::{InstanceRecord, Resource, Transaction, VolumeRecord};

pub(super) fn by_id<R, K>(tx: &Transaction, id: Id<K>) -> Result<R, CloudError>
where
    R: Resource<Id = Id<K>>,
    K: ResourceKind,
{
    let key = id.to_string();
    Ok(tx.get(&key)?.ok_or_else(|| Id::<K>::not_found(&key))?)
}

/// Returns the resource that an earlier request with the same client token created. Fails if that request asked for
/// something else, which `is_repeated` tells. `noun` names the kind of resource in the error.
pub(super) fn with_token<R: Resource>(
    tx: &Transaction,
    token: Option<&str>,
    noun: &str,
    is_repeated: impl FnOnce(&R) -> Result<bool, CloudError>,
) -> Result<Option<R>, CloudError> {
    let Some(token) = token else { return Ok(None) };
    let is_same = |record: &R| record.meta().client_token.as_deref() == Some(token);
    let Some(existing) = tx.list::<R>()?.into_iter().find(is_same) else { return Ok(None) };
    if is_repeated(&existing)? {
        return Ok(Some(existing));
    }
    let what = format!("The client token '{token}' was used before, for a {noun} with other parameters.");
    Err(CloudError::refused(ErrorCode::IdempotentParameterMismatch, what, None))
}

pub(super) fn get(tx: &Transaction, id: InstanceId) -> Result<InstanceRecord, CloudError> {
    by_id(tx, id)
}

pub(super) fn get_volume(tx: &Transaction, id: VolumeId) -> Result<VolumeRecord, CloudError> {
    by_id(tx, id)
}

pub(super) fn volumes_of(tx: &Transaction, record: &InstanceRecord) -> Result<Vec<VolumeRecord>, CloudError> {
    let ids = record.status.block_devices.iter().map(|device| device.volume_id.to_string());
    let volumes = ids.map(|id| tx.get::<VolumeRecord>(&id)).collect::<Result<Vec<_>, _>>()?;
    Ok(volumes.into_iter().flatten().collect())
}

pub(super) fn size_of(record: &InstanceRecord) -> Result<InstanceSize, CloudError> {
    let instance_type = catalog::find(&record.spec.size.instance_type)?;
    Ok(InstanceSize { instance_type, vcpus: record.spec.size.vcpus, memory_mib: record.spec.size.memory_mib })
}

pub(super) fn figures_of(record: &VolumeRecord) -> Result<VolumeFigures, CloudError> {
    let volume_type: VolumeType = record.spec.volume_type.parse()?;
    let size = VolumeSize::that_holds(record.spec.size).ok_or_else(no_size)?;
    Ok(VolumeFigures { size, volume_type, iops: record.spec.iops, throughput: record.spec.throughput })
}
