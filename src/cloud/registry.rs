//! The image registry: imported images, images created from instances, and the embedded image.

use super::error::CloudError;
use super::lookup::by_id;
use super::template;
use super::{Cloud, new_id, now};
use ec2::id::{Id, Image as ImageKind};
use ec2::image_alias::AliasReference;
use ec2::metadata::ImdsSupport;
use ec2::{ErrorCode, ImageId};
use node::host::UnfinishedImage;
use node::image::Image;
use node::image_memory::ImageMemory;
use node::{embedded, shell};
use store::{ImageRecord, Meta, StoreError, Transaction, Visibility};

#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Images<'_> {
    /// Finds and opens an image by its ID, a unique prefix of its ID, or its name. The default is the embedded image.
    pub fn open(&self, reference: Option<&str>) -> Result<(ImageRecord, Image), CloudError> {
        self.register_embedded()?;
        let record = self.find(reference.unwrap_or(embedded::NAME))?;
        let image = self.open_by_id(record.meta.id)?;
        Ok((record, image))
    }

    /// Returns an image's memory snapshot, if it has one. The embedded image has none and is not unpacked here.
    pub fn memory(&self, reference: Option<&str>) -> Result<Option<ImageMemory>, CloudError> {
        let record = self.find(reference.unwrap_or(embedded::NAME))?;
        Ok(self.open_unless_embedded(&record)?.and_then(|image| ImageMemory::of(&image)))
    }

    /// Opens an image. Returns `None` for the embedded image, which may have to be unpacked first.
    pub(super) fn open_unless_embedded(&self, record: &ImageRecord) -> Result<Option<Image>, CloudError> {
        if record.meta.id == embedded::id() { Ok(None) } else { self.open_by_id(record.meta.id).map(Some) }
    }

    /// Finds the record of a registered image or of the embedded one, without changing the store. `resolve:ssm:PATH` is
    /// the image of an alias.
    pub fn find(&self, reference: &str) -> Result<ImageRecord, CloudError> {
        if let Some(alias) = AliasReference::parse(reference)? {
            return self.find(&self.cloud.image_aliases().resolve(&alias)?.to_string());
        }
        let known = self.known()?;
        // A name cannot hide an image whose ID it has, or stand for the ID of a deregistered one.
        if let Ok(id) = reference.parse::<ImageId>() {
            let found = known.into_iter().find(|record| record.meta.id == id);
            return found.ok_or_else(|| ImageId::not_found(reference).into());
        }
        if let Some(named) = known.iter().find(|record| record.spec.name == reference) {
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
        let id = ImageId::find(reference, known.iter().map(|record| record.meta.id))?;
        Ok(known.into_iter().find(|record| record.meta.id == id).expect("the ID comes from these records"))
    }

    pub fn list(&self) -> Result<Vec<ImageRecord>, CloudError> {
        self.register_embedded()?;
        self.known()
    }

    /// Lists all registered images, and the embedded one, which is not registered before its first use.
    fn known(&self) -> Result<Vec<ImageRecord>, CloudError> {
        let mut records: Vec<ImageRecord> = self.cloud.records()?;
        records.retain(is_registered);
        if records.iter().all(|record| record.meta.id != embedded::id()) {
            records.retain(|record| record.spec.name != embedded::NAME);
            records.push(embedded_record());
        }
        records.sort_by(|a, b| (a.meta.created, &a.spec.name).cmp(&(b.meta.created, &b.spec.name)));
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
        if known.as_ref().is_some_and(is_registered) {
            return Ok(());
        }
        self.cloud.store.write::<_, CloudError>(|tx| {
            // Another command may have registered it in the meantime, and tagged it.
            let known = tx.get::<ImageRecord>(&id.to_string())?;
            if known.as_ref().is_some_and(is_registered) {
                return Ok(());
            }
            for mut record in tx.list::<ImageRecord>()? {
                if record.spec.name == embedded::NAME && is_registered(&record) {
                    record.status.deregistered = Some(now());
                    tx.put(&mut record)?;
                }
            }
            let mut record = embedded_record();
            match known {
                Some(known) => {
                    record.meta.generation = known.meta.generation;
                    Ok(tx.put(&mut record)?)
                }
                None => Ok(tx.insert(&mut record)?),
            }
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
        let id = self.find(reference)?.meta.id;
        refuse_embedded(id, "modified")?;
        self.cloud.store.write(|tx| {
            let mut record: ImageRecord = tx.get(&id.to_string())?.ok_or_else(|| ImageId::not_found(reference))?;
            record.spec.visibility = visibility.unwrap_or(record.spec.visibility);
            record.spec.description = description.unwrap_or(record.spec.description);
            record.spec.imds_support = imds_support.or(record.spec.imds_support);
            tx.put(&mut record)?;
            Ok(record)
        })
    }

    pub(super) fn register(&self, mut record: ImageRecord, image: UnfinishedImage) -> Result<ImageRecord, CloudError> {
        // The lock is released when the image has a record.
        let _lock = self.cloud.store.write::<_, CloudError>(|tx| {
            name_is_free(tx, &record.spec.name)?;
            let lock = self.cloud.node.images().keep(image, record.meta.id)?;
            tx.insert(&mut record)?;
            Ok(lock)
        })?;
        Ok(record)
    }

    /// Deregisters an image. Its files are kept for as long as an instance, volume or snapshot uses them.
    pub fn deregister(&self, reference: &str) -> Result<ImageRecord, CloudError> {
        let id = self.find(reference)?.meta.id;
        refuse_embedded(id, "deregistered")?;
        let record = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record: ImageRecord = by_id(tx, id)?;
            record.status.deregistered.get_or_insert(now());
            tx.put(&mut record)?;
            Ok(record)
        })?;
        template::remove_of(&self.cloud.home, &self.cloud.home.images().join(record.meta.id.to_string()))?;
        self.cloud.sweep().images();
        Ok(record)
    }
}

fn is_registered(record: &ImageRecord) -> bool {
    record.status.deregistered.is_none()
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
    let mut record = new_record(embedded::NAME, description);
    record.meta.id = embedded::id();
    record.spec.visibility = Visibility::Public;
    record.status.owner = "wisp".into();
    record
}

/// Returns the record of a new private image. The owner is the user's name on this host, or `self` if it is unknown.
pub(super) fn new_record(name: &str, description: &str) -> ImageRecord {
    ImageRecord {
        meta: Meta::new(new_id(), now(), Default::default()),
        spec: store::image::Spec {
            name: name.into(),
            description: description.into(),
            visibility: Visibility::Private,
            source_instance: None,
            imds_support: None,
        },
        status: store::image::Status {
            owner: std::env::var("USER").unwrap_or_else(|_| "self".into()),
            deregistered: None,
        },
    }
}

fn name_is_free(tx: &Transaction, name: &str) -> Result<(), CloudError> {
    let is_it = |known: &ImageRecord| is_registered(known) && known.spec.name == name;
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
