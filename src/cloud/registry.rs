//! The registered images: those that were imported or made here, and the embedded one.

use std::fs;

use super::error::CloudError;
use super::image::{Image, ImageError, MANIFEST};
use super::{Cloud, embedded, now};
use crate::ec2::id::Id;
use crate::ec2::id::Image as ImageKind;
use crate::ec2::{Ec2Error, ImageId};
use crate::store::{ImageRecord, InstanceRecord, StoreError, Transaction, Visibility};

impl Cloud {
    /// The image that `reference` stands for: an identifier, the beginning of one, or a name; the embedded one when
    /// nothing is said.
    pub fn image(&mut self, reference: Option<&str>) -> Result<(ImageRecord, Image), CloudError> {
        let record = self.image_record(reference.unwrap_or(embedded::NAME))?;
        let image = self.open_image(record.id)?;
        Ok((record, image))
    }

    /// The registered image that `reference` stands for.
    pub fn image_record(&mut self, reference: &str) -> Result<ImageRecord, CloudError> {
        let known = self.images()?;
        if let Some(named) = known.iter().find(|record| record.name == reference) {
            return Ok(named.clone());
        }
        if !Id::<ImageKind>::looks_like(reference) {
            if reference.contains('/') {
                return Err(Ec2Error::Refused {
                    code: crate::ec2::ErrorCode::InvalidAmiIdNotFound,
                    what: format!("The directory '{reference}' is no registered image."),
                    hint: Some(format!("`wisp image import {reference} --name NAME` makes it one.")),
                }
                .into());
            }
            return Err(ImageId::not_found(reference).into());
        }
        let id = ImageId::find(reference, known.iter().map(|record| record.id))?;
        Ok(known.into_iter().find(|record| record.id == id).expect("it was found among these"))
    }

    /// All registered images.
    pub fn images(&mut self) -> Result<Vec<ImageRecord>, CloudError> {
        self.register_embedded()?;
        let mut records: Vec<ImageRecord> = self.store.read::<_, CloudError>(|tx| Ok(tx.list()?))?;
        records.retain(|record| record.deregistered.is_none());
        records.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(records)
    }

    /// Opens the bundle of an image that is or was registered.
    pub fn open_image(&self, id: ImageId) -> Result<Image, CloudError> {
        if id == embedded::id() {
            let folder = embedded::unpacked(&self.home).map_err(ImageError::Embedded)?;
            return Ok(Image::open(&folder)?);
        }
        Ok(Image::open(&self.home.images().join(id.to_string()))?)
    }

    /// The embedded image is registered like any other. Another version of Wisp brings another one, which takes over
    /// the name.
    fn register_embedded(&mut self) -> Result<(), CloudError> {
        let id = embedded::id();
        let known = self.store.read::<_, StoreError>(|tx| tx.get::<ImageRecord>(&id.to_string()))?;
        if known.is_some_and(|record| record.deregistered.is_none()) {
            return Ok(());
        }
        self.store.write::<_, CloudError>(|tx| {
            for mut record in tx.list::<ImageRecord>()? {
                if record.name == embedded::NAME && record.deregistered.is_none() {
                    record.deregistered = Some(now());
                    tx.put(&record)?;
                }
            }
            Ok(tx.put(&ImageRecord {
                id,
                name: embedded::NAME.into(),
                description: "Linux with busybox and the Wisp agent, inside the binary".into(),
                created: now(),
                owner: "wisp".into(),
                visibility: Visibility::Public,
                source_instance: None,
                deregistered: None,
                tags: Default::default(),
            })?)
        })
    }

    /// Deregisters an image. Its files stay for as long as an instance or a volume uses them.
    pub fn deregister_image(&mut self, reference: &str) -> Result<ImageRecord, CloudError> {
        let mut record = self.image_record(reference)?;
        if record.id == embedded::id() {
            return Err(Ec2Error::Refused {
                code: crate::ec2::ErrorCode::OperationNotPermitted,
                what: format!("The image '{}' is inside wisp and cannot be deregistered.", record.name),
                hint: None,
            }
            .into());
        }
        record.deregistered = Some(now());
        self.store.write::<_, StoreError>(|tx| tx.put(&record))?;
        self.sweep_images()?;
        Ok(record)
    }

    /// Removes the files of images that nobody can use any more.
    pub(super) fn sweep_images(&mut self) -> Result<(), CloudError> {
        let folder = self.home.images();
        let _lock = self.home.lock(&folder)?;
        let kept: Vec<ImageId> = self.store.write::<_, CloudError>(|tx| {
            let used = images_in_use(tx)?;
            let mut kept = vec![embedded::id()];
            for record in tx.list::<ImageRecord>()? {
                if record.deregistered.is_none() || used.contains(&record.id) {
                    kept.push(record.id);
                } else {
                    tx.remove::<ImageRecord>(&record.id.to_string())?;
                }
            }
            Ok(kept)
        })?;
        for entry in fs::read_dir(&folder).map_err(CloudError::file(&folder, "read"))? {
            let path = entry.map_err(CloudError::file(&folder, "read"))?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<ImageId>().ok());
            // A folder that was never registered is an older wisp's embedded image, or an import that was killed.
            if id.is_some_and(|id| !kept.contains(&id)) && path.join(MANIFEST).exists() {
                fs::remove_dir_all(&path).map_err(CloudError::file(&path, "removed"))?;
            }
        }
        Ok(())
    }
}

/// Images that a disk of some volume or snapshot rests on, or that an instance boots the kernel of.
fn images_in_use(tx: &Transaction) -> Result<Vec<ImageId>, CloudError> {
    let mut used: Vec<ImageId> = tx.list::<InstanceRecord>()?.iter().map(|record| record.image_id).collect();
    used.extend(tx.list::<crate::store::VolumeRecord>()?.iter().filter_map(|record| record.image_id));
    used.extend(tx.list::<crate::store::SnapshotRecord>()?.iter().filter_map(|record| record.image_id));
    Ok(used)
}
