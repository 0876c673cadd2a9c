//! The image registry: imported images, images created from instances, and the embedded image.

use super::error::CloudError;
use super::template;
use super::{Cloud, new_id, now};
use ec2::id::{Id, Image as ImageKind};
use ec2::metadata::ImdsSupport;
use ec2::{ErrorCode, ImageId};
use node::host::UnfinishedImage;
use node::image::Image;
use node::image_memory::ImageMemory;
use node::{embedded, shell};
use store::{ImageRecord, StoreError, Transaction, Visibility};

#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Images<'_> {
    /// Finds and opens an image by its ID, a unique prefix of its ID, or its name. The default is the embedded image.
    pub fn open(&self, reference: Option<&str>) -> Result<(ImageRecord, Image), CloudError> {
        self.register_embedded()?;
        let record = self.find(reference.unwrap_or(embedded::NAME))?;
        let image = self.open_by_id(record.id)?;
        Ok((record, image))
    }

    /// Returns an image's memory snapshot, if it has one. The embedded image has none and is not unpacked here.
    pub fn memory(&self, reference: Option<&str>) -> Result<Option<ImageMemory>, CloudError> {
        let record = self.find(reference.unwrap_or(embedded::NAME))?;
        Ok(self.open_unless_embedded(&record)?.and_then(|image| ImageMemory::of(&image)))
    }

    /// Opens an image. Returns `None` for the embedded image, which may have to be unpacked first.
    pub(super) fn open_unless_embedded(&self, record: &ImageRecord) -> Result<Option<Image>, CloudError> {
        if record.id == embedded::id() { Ok(None) } else { self.open_by_id(record.id).map(Some) }
    }

    /// Finds the record of a registered image or of the embedded one, without changing the store.
    pub fn find(&self, reference: &str) -> Result<ImageRecord, CloudError> {
        let known = self.known()?;
        if let Some(named) = known.iter().find(|record| record.name == reference) {
            return Ok(named.clone());
        }
        if !Id::<ImageKind>::looks_like(reference) {
            if reference.contains('/') {
                return Err(CloudError::refused(
                    ErrorCode::InvalidAmiIdNotFound,
                    format!("The directory '{reference}' is not a registered image."),
                    Some(format!(
                        "`wisp {}` runs it directly; `wisp image ls` lists the registered images.",
                        shell::command(["run", reference])
                    )),
                ));
            }
            return Err(ImageId::not_found(reference).into());
        }
        let id = ImageId::find(reference, known.iter().map(|record| record.id))?;
        Ok(known.into_iter().find(|record| record.id == id).expect("the ID comes from these records"))
    }

    pub fn list(&self) -> Result<Vec<ImageRecord>, CloudError> {
        self.register_embedded()?;
        self.known()
    }

    /// Lists all registered images, and the embedded one, which is not registered before its first use.
    fn known(&self) -> Result<Vec<ImageRecord>, CloudError> {
        let mut records: Vec<ImageRecord> = self.cloud.records()?;
        records.retain(|record| record.deregistered.is_none());
        if records.iter().all(|record| record.id != embedded::id()) {
            records.retain(|record| record.name != embedded::NAME);
            records.push(embedded_record());
        }
        records.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(records)
    }

    /// Opens the bundle of an image that is or was registered.
    pub fn open_by_id(&self, id: ImageId) -> Result<Image, CloudError> {
        Ok(self.cloud.node.images().open(id)?)
    }

    /// Registers the embedded image if necessary. Deregisters that of another version of Wisp, which has the same name.
    pub(super) fn register_embedded(&self) -> Result<(), CloudError> {
        let id = embedded::id();
        let known = self.cloud.store.read::<_, StoreError>(|tx| tx.get::<ImageRecord>(&id.to_string()))?;
        if known.is_some_and(|record| record.deregistered.is_none()) {
            return Ok(());
        }
        self.cloud.store.write::<_, CloudError>(|tx| {
            for mut record in tx.list::<ImageRecord>()? {
                if record.name == embedded::NAME && record.deregistered.is_none() {
                    record.deregistered = Some(now());
                    tx.put(&record)?;
                }
            }
            Ok(tx.put(&embedded_record())?)
        })
    }

    pub(super) fn check_name_is_free(&self, name: &str) -> Result<(), CloudError> {
        self.cloud.store.read(|tx| name_is_free(tx, name))
    }

    /// Changes an image's attributes. `None` leaves an attribute unchanged.
    pub fn modify(
        &self,
        reference: &str,
        visibility: Option<Visibility>,
        description: Option<String>,
        imds_support: Option<ImdsSupport>,
    ) -> Result<ImageRecord, CloudError> {
        let id = self.find(reference)?.id;
        refuse_embedded(id, "modified")?;
        self.cloud.store.write(|tx| {
            let mut record: ImageRecord = tx.get(&id.to_string())?.ok_or_else(|| ImageId::not_found(reference))?;
            record.visibility = visibility.unwrap_or(record.visibility);
            record.description = description.unwrap_or(record.description);
            record.imds_support = imds_support.or(record.imds_support);
            tx.put(&record)?;
            Ok(record)
        })
    }

    pub(super) fn register(&self, record: ImageRecord, image: UnfinishedImage) -> Result<ImageRecord, CloudError> {
        // The lock is released when the image has a record.
        let _lock = self.cloud.store.write::<_, CloudError>(|tx| {
            name_is_free(tx, &record.name)?;
            let lock = self.cloud.node.images().keep(image, record.id)?;
            tx.insert(&record)?;
            Ok(lock)
        })?;
        Ok(record)
    }

    /// Deregisters an image. Its files are kept for as long as an instance, volume or snapshot uses them.
    pub fn deregister(&self, reference: &str) -> Result<ImageRecord, CloudError> {
        let mut record = self.find(reference)?;
        refuse_embedded(record.id, "deregistered")?;
        record.deregistered = Some(now());
        self.cloud.store.write::<_, StoreError>(|tx| tx.put(&record))?;
        template::remove_of(&self.cloud.home, &self.cloud.home.images().join(record.id.to_string()))?;
        self.cloud.sweep().images();
        Ok(record)
    }
}

fn refuse_embedded(id: ImageId, change: &str) -> Result<(), CloudError> {
    if id != embedded::id() {
        return Ok(());
    }
    let what = format!("The image '{}' is embedded in wisp and cannot be {change}.", embedded::NAME);
    Err(CloudError::refused(ErrorCode::OperationNotPermitted, what, None))
}

fn embedded_record() -> ImageRecord {
    let description = "Linux with BusyBox and the Wisp agent, embedded in the binary";
    let (id, owner, visibility) = (embedded::id(), "wisp".into(), Visibility::Public);
    ImageRecord { id, owner, visibility, ..new_record(embedded::NAME, description) }
}

/// Returns the record of a new private image. The owner is the user's name on this host, or `self` if it is unknown.
pub(super) fn new_record(name: &str, description: &str) -> ImageRecord {
    ImageRecord {
        id: new_id(),
        name: name.into(),
        description: description.into(),
        created: now(),
        owner: std::env::var("USER").unwrap_or_else(|_| "self".into()),
        visibility: Visibility::Private,
        source_instance: None,
        deregistered: None,
        imds_support: None,
        tags: Default::default(),
    }
}

fn name_is_free(tx: &Transaction, name: &str) -> Result<(), CloudError> {
    let is_it = |known: &ImageRecord| known.deregistered.is_none() && known.name == name;
    if name != embedded::NAME && !tx.list::<ImageRecord>()?.iter().any(is_it) {
        return Ok(());
    }
    let what = format!("AMI name {name} is already in use.");
    Err(CloudError::refused(ErrorCode::InvalidAmiNameDuplicate, what, None))
}

/// Checks an image's name: 3 to 128 letters, digits and `()[] ./-'@_` (EC2 API Reference, `CreateImage`).
pub(super) fn check_name(name: &str) -> Result<(), CloudError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if (3..=128).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let what = format!(
        "Invalid AMI name '{name}': it must be 3 to 128 characters long: letters, digits, spaces and ()[]./-'@_."
    );
    Err(CloudError::refused(ErrorCode::InvalidAmiNameMalformed, what, None))
}
