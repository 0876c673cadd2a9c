//! `CreateTags` and `DeleteTags`, for everything that has tags.

use std::collections::BTreeMap;

use super::Cloud;
use super::error::CloudError;
use super::resolve;
use crate::ec2::id::{Id, Image, Snapshot, Volume};
use crate::ec2::tag::{Tag, check_key, with_tags};
use crate::ec2::{Ec2Error, ImageId, InstanceId, SnapshotId, VolumeId};
use crate::store::{ImageRecord, InstanceRecord, Record, SnapshotRecord, Transaction, VolumeRecord};

/// A resource's tags.
pub type Tags = BTreeMap<String, String>;

/// What has tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// An instance.
    Instance(InstanceId),
    /// A volume.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// An image.
    Image(ImageId),
}

impl Cloud {
    /// What `reference` stands for: an identifier tells by itself, and a name is an instance's first, then a volume's, a
    /// snapshot's, an image's.
    pub fn resource(&mut self, reference: &str) -> Result<Resource, CloudError> {
        if Id::<Image>::looks_like(reference) {
            return Ok(Resource::Image(self.image_record(reference)?.id));
        }
        let found = self.store.read(|tx| find(tx, reference))?;
        match found {
            Some(resource) => Ok(resource),
            None => match self.image_record(reference) {
                Ok(record) => Ok(Resource::Image(record.id)),
                Err(_) => Err(InstanceId::not_found(reference).into()),
            },
        }
    }

    /// Sets tags of a resource, removes others, and returns all that it has then.
    pub fn tag(&mut self, resource: Resource, set: &[Tag], remove: &[String]) -> Result<Tags, CloudError> {
        let tags = self.store.write::<_, CloudError>(|tx| {
            let change = |tags: &mut Tags| -> Result<(), Ec2Error> {
                remove.iter().try_for_each(|key| check_key(key))?;
                *tags = with_tags(tags, set.iter().cloned())?;
                tags.retain(|key, _| !remove.contains(key));
                Ok(())
            };
            let changed = match resource {
                Resource::Instance(id) => update(tx, &id.to_string(), |it: &mut InstanceRecord| &mut it.tags, &change),
                Resource::Volume(id) => update(tx, &id.to_string(), |it: &mut VolumeRecord| &mut it.tags, &change),
                Resource::Snapshot(id) => update(tx, &id.to_string(), |it: &mut SnapshotRecord| &mut it.tags, &change),
                Resource::Image(id) => update(tx, &id.to_string(), |it: &mut ImageRecord| &mut it.tags, &change),
            };
            changed?.ok_or_else(|| resource.not_found().into())
        })?;
        // Its tags may be part of its metadata.
        if let Resource::Instance(id) = resource {
            let record = self.instance(&id.to_string())?;
            self.retell(&record)?;
        }
        Ok(tags)
    }
}

impl Resource {
    fn not_found(self) -> Ec2Error {
        match self {
            Resource::Instance(id) => InstanceId::not_found(&id.to_string()),
            Resource::Volume(id) => VolumeId::not_found(&id.to_string()),
            Resource::Snapshot(id) => SnapshotId::not_found(&id.to_string()),
            Resource::Image(id) => ImageId::not_found(&id.to_string()),
        }
    }
}

/// An instance, a volume or a snapshot; nothing if there is none of that name.
fn find(tx: &Transaction, reference: &str) -> Result<Option<Resource>, CloudError> {
    if Id::<Volume>::looks_like(reference) {
        return Ok(Some(Resource::Volume(resolve::volume(tx, reference)?.id)));
    }
    if Id::<Snapshot>::looks_like(reference) {
        return Ok(Some(Resource::Snapshot(resolve::snapshot(tx, reference)?.id)));
    }
    let candidates = [
        resolve::instance(tx, reference).map(|record| Resource::Instance(record.id)),
        resolve::volume(tx, reference).map(|record| Resource::Volume(record.id)),
        resolve::snapshot(tx, reference).map(|record| Resource::Snapshot(record.id)),
    ];
    for candidate in candidates {
        match candidate {
            Err(CloudError::Ec2(Ec2Error::NotFound { .. })) => {}
            found => return found.map(Some),
        }
    }
    Ok(None)
}

/// Changes the tags of one record; returns them, or nothing if the record is gone.
fn update<R: Record>(
    tx: &Transaction,
    key: &str,
    tags: impl Fn(&mut R) -> &mut Tags,
    change: &dyn Fn(&mut Tags) -> Result<(), Ec2Error>,
) -> Result<Option<Tags>, CloudError> {
    let Some(mut record) = tx.get::<R>(key)? else { return Ok(None) };
    change(tags(&mut record))?;
    tx.put(&record)?;
    Ok(Some(tags(&mut record).clone()))
}
