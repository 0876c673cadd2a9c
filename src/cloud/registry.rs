//! The image registry: imported images, images created from instances, and the embedded image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::CloudError;
use super::fork::Frozen;
use super::image::{Image, ImageError, MANIFEST, RootEntry};
use super::image_memory::ImageMemory;
use super::layers;
use super::machine_config::disk_id;
use super::template;
use super::{Cloud, embedded, new_id, now};
use disk::{disk_image, sparse};
use ec2::id::Id;
use ec2::id::Image as ImageKind;
use ec2::metadata::ImdsSupport;
use ec2::state::{Action, InstanceState};
use ec2::{ErrorCode, ImageId, InstanceId};
use machine::config::{BackingFile, DiskFormat};
use node::home::write_private;
use node::instance::SYNC_TIMEOUT;
use node::shell;
use store::{ImageRecord, InstanceRecord, SnapshotRecord, StoreError, Transaction, Visibility, VolumeRecord};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageConsistency {
    /// A running guest first writes its dirty pages to its disk.
    Written,
    /// Crash-consistent, as after a power failure.
    Now,
    /// Like `Written`, including the guest's memory.
    WithMemory,
}

impl Cloud {
    /// Finds and opens an image by its ID, a unique prefix of its ID, or its name. The default is the embedded image.
    pub fn image(&self, reference: Option<&str>) -> Result<(ImageRecord, Image), CloudError> {
        self.register_embedded()?;
        let record = self.image_record(reference.unwrap_or(embedded::NAME))?;
        let image = self.open_image(record.id)?;
        Ok((record, image))
    }

    /// Returns an image's memory snapshot, if it has one. The embedded image has none and is not unpacked here.
    pub fn image_memory(&self, reference: Option<&str>) -> Result<Option<ImageMemory>, CloudError> {
        let record = self.image_record(reference.unwrap_or(embedded::NAME))?;
        Ok(self.check_image(&record)?.and_then(|image| ImageMemory::of(&image)))
    }

    /// Opens an image. Returns `None` for the embedded image, which may have to be unpacked first.
    pub(super) fn check_image(&self, record: &ImageRecord) -> Result<Option<Image>, CloudError> {
        if record.id == embedded::id() { Ok(None) } else { self.open_image(record.id).map(Some) }
    }

    /// Finds the record of a registered image or of the embedded one, without changing the store.
    pub fn image_record(&self, reference: &str) -> Result<ImageRecord, CloudError> {
        let known = self.known_images()?;
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

    pub fn images(&self) -> Result<Vec<ImageRecord>, CloudError> {
        self.register_embedded()?;
        self.known_images()
    }

    /// Lists all registered images, and the embedded one, which is not registered before its first use.
    fn known_images(&self) -> Result<Vec<ImageRecord>, CloudError> {
        let mut records: Vec<ImageRecord> = self.store.read::<_, CloudError>(|tx| Ok(tx.list()?))?;
        records.retain(|record| record.deregistered.is_none());
        if records.iter().all(|record| record.id != embedded::id()) {
            records.retain(|record| record.name != embedded::NAME);
            records.push(embedded_record());
        }
        records.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(records)
    }

    /// Opens the bundle of an image that is or was registered.
    pub fn open_image(&self, id: ImageId) -> Result<Image, CloudError> {
        if id == embedded::id() {
            let dir = embedded::unpacked(&self.home).map_err(ImageError::Embedded)?;
            return Ok(Image::open(&dir)?);
        }
        Ok(Image::open(&self.home.images().join(id.to_string()))?)
    }

    /// Registers the embedded image if necessary. Deregisters that of another version of Wisp, which has the same name.
    pub(super) fn register_embedded(&self) -> Result<(), CloudError> {
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
            Ok(tx.put(&embedded_record())?)
        })
    }

    /// Creates an image of an instance's root volume, with the kernel that the instance boots. Except with
    /// [`ImageConsistency::Now`], a running guest first writes its dirty pages to its disks. The data of a running
    /// instance is copied from a snapshot, so its guest can continue to write.
    pub fn create_image(
        &self,
        instance: InstanceId,
        name: &str,
        description: &str,
        moment: ImageConsistency,
    ) -> Result<ImageRecord, CloudError> {
        check_name(name)?;
        self.check_name_is_free(name)?;
        let record = self.instance(&instance.to_string())?;
        Action::ChangeVolumes.allowed(instance, record.state)?;
        let source = self.open_image(record.image_id)?;
        let (Some(root), Some(entry)) = (self.volumes_of(&record)?.into_iter().next(), &source.manifest.root) else {
            return Err(CloudError::refused(
                ErrorCode::Unsupported,
                format!("Cannot create an image of the instance '{instance}': it has no root volume."),
                None,
            ));
        };
        let of_source =
            self.store.read::<_, CloudError>(|tx| Ok(tx.get::<ImageRecord>(&record.image_id.to_string())?))?;
        let imds_support = of_source.and_then(|image| image.imds_support);
        let new = ImageRecord { imds_support, ..image_of(instance, name, description) };
        if moment == ImageConsistency::WithMemory {
            return self.create_image_with_memory(new, &record, &source, entry);
        }
        let running = record.state == InstanceState::Running;
        if running && moment == ImageConsistency::Written {
            self.dir(instance).sync(SYNC_TIMEOUT)?;
        }
        let snapshot = if running {
            Some(self.create_snapshot(root.id, "Created for an image", Default::default())?)
        } else {
            None
        };
        let (file, backing) = match &snapshot {
            Some(snapshot) => (&snapshot.file, &snapshot.backing),
            None => (&root.file, &root.backing),
        };
        let made = layers::backing_files(&self.home, &root.id, backing.as_deref()).and_then(|backing| {
            let disk = (self.home.volumes().join(file), backing);
            self.build_image(new, &source, entry, &disk, |_| Ok(()))
        });
        if let Some(snapshot) = snapshot {
            self.delete_snapshot(snapshot.id)?;
        }
        made
    }

    /// Creates an image of a running instance's root volume and memory, both captured at the same time.
    fn create_image_with_memory(
        &self,
        new: ImageRecord,
        record: &InstanceRecord,
        source: &Image,
        entry: &RootEntry,
    ) -> Result<ImageRecord, CloudError> {
        self.check_freezable(record)?;
        if self.volumes_of(record)?.len() > 1 {
            return Err(CloudError::refused(
                ErrorCode::UnsupportedOperation,
                format!(
                    "The instance '{}' has volumes other than its root volume. An image with memory can contain only \
                     the root volume.",
                    record.id
                ),
                Some("Detach the other volumes first: `wisp volume detach`.".into()),
            ));
        }
        // The image can also be cold-booted, so the disk must be consistent.
        self.dir(record.id).sync(SYNC_TIMEOUT)?;
        let Frozen { saved, volumes, sweeping, _changing, .. } = self.freeze(record)?;
        drop(sweeping);
        let root = &volumes[0];
        let memory = ImageMemory::of_instance(record, disk_id(root));
        let backing = layers::backing_files(&self.home, &root.id, root.backing.as_deref())?;
        let disk = (self.home.volumes().join(&root.file), backing);
        let put = |bundle: &Path| memory.put(saved.path(), bundle);
        self.build_image(new, source, entry, &disk, put)
    }

    /// Builds the image of `record` from a root disk (qcow2) with its backing files, and from the other files of
    /// `source`. `finish` may add files to its directory.
    fn build_image(
        &self,
        record: ImageRecord,
        source: &Image,
        entry: &RootEntry,
        (disk, backing): &(PathBuf, Vec<BackingFile>),
        finish: impl FnOnce(&Path) -> Result<(), CloudError>,
    ) -> Result<ImageRecord, CloudError> {
        let (_lock, scratch) = self.scratch_image()?;
        let mut manifest = source.manifest.clone();
        manifest.name.clone_from(&record.name);
        manifest.description.clone_from(&record.description);
        for file in manifest.digests().map(|(file, _)| file.to_string()).filter(|file| *file != entry.file) {
            let (from, to) = (source.dir.join(&file), scratch.path().join(&file));
            // A hard link takes no space, but works only within one file system.
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(|_| ()))
                .map_err(CloudError::file(&to, "create"))?;
        }
        let root = scratch.path().join(&entry.file);
        disk_image::convert(&layers::resolved(disk.clone()), DiskFormat::Qcow2, backing, &root, DiskFormat::Raw)?;
        let digest = |file: fs::File| sparse::sha256(&file, &|_| {});
        let sha256 = fs::File::open(&root).and_then(digest).map_err(CloudError::file(&root, "read"))?;
        manifest.root = Some(RootEntry { sha256, format: DiskFormat::Raw, ..entry.clone() });
        let text = toml::to_string(&manifest).expect("a manifest is plain data");
        let path = scratch.path().join(MANIFEST);
        write_private(&path, text.as_bytes()).map_err(CloudError::file(&path, "write"))?;
        finish(scratch.path())?;
        self.register(record, scratch)
    }

    /// Creates a directory for a new image. The caller holds the lock until the image has a record, so an unfinished
    /// directory that is found under the lock was left by a killed process.
    pub(super) fn scratch_image(&self) -> Result<(fs::File, tempfile::TempDir), CloudError> {
        let images = self.home.images();
        let lock = self.home.lock(&images)?;
        embedded::remove_unfinished(&images).map_err(CloudError::file(&images, "clean up"))?;
        let scratch = tempfile::Builder::new()
            .prefix(embedded::UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&images)
            .map_err(CloudError::file(&images, "create a directory in"))?;
        Ok((lock, scratch))
    }

    pub(super) fn check_name_is_free(&self, name: &str) -> Result<(), CloudError> {
        self.store.read(|tx| name_is_free(tx, name))
    }

    /// Changes an image's attributes. `None` leaves an attribute unchanged.
    pub fn modify_image(
        &self,
        reference: &str,
        visibility: Option<Visibility>,
        description: Option<String>,
        imds_support: Option<ImdsSupport>,
    ) -> Result<ImageRecord, CloudError> {
        let id = self.image_record(reference)?.id;
        if id == embedded::id() {
            return Err(CloudError::refused(
                ErrorCode::OperationNotPermitted,
                format!("The image '{}' is embedded in wisp and cannot be modified.", embedded::NAME),
                None,
            ));
        }
        self.store.write(|tx| {
            let mut record: ImageRecord = tx.get(&id.to_string())?.ok_or_else(|| ImageId::not_found(reference))?;
            record.visibility = visibility.unwrap_or(record.visibility);
            record.description = description.unwrap_or(record.description);
            record.imds_support = imds_support.or(record.imds_support);
            tx.put(&record)?;
            Ok(record)
        })
    }

    pub(super) fn register(&self, record: ImageRecord, bundle: tempfile::TempDir) -> Result<ImageRecord, CloudError> {
        let dir = self.home.images().join(record.id.to_string());
        self.store.write(|tx| {
            name_is_free(tx, &record.name)?;
            fs::rename(bundle.path(), &dir).map_err(CloudError::file(&dir, "create"))?;
            let _ = bundle.keep();
            tx.insert(&record)?;
            Ok(record)
        })
    }

    /// Deregisters an image. Its files are kept for as long as an instance, volume or snapshot uses them.
    pub fn deregister_image(&self, reference: &str) -> Result<ImageRecord, CloudError> {
        let mut record = self.image_record(reference)?;
        if record.id == embedded::id() {
            return Err(CloudError::refused(
                ErrorCode::OperationNotPermitted,
                format!("The image '{}' is embedded in wisp and cannot be deregistered.", record.name),
                None,
            ));
        }
        record.deregistered = Some(now());
        self.store.write::<_, StoreError>(|tx| tx.put(&record))?;
        template::remove_of(&self.home, &self.home.images().join(record.id.to_string()))?;
        self.sweep_images();
        Ok(record)
    }

    /// Removes the files of unused deregistered images. A failure becomes a warning: the user asked for something else,
    /// and a later command tries again.
    pub(super) fn sweep_images(&self) {
        let lock = self.home.lock(&self.home.images()).map_err(CloudError::from);
        let swept = lock.and_then(|_lock| self.sweep_images_locked());
        self.warn_failed("cannot remove the files of deregistered images", swept);
    }

    /// Removes image files that killed commands left, unless another command is creating an image.
    pub(super) fn sweep_stray_images(&self) -> Result<(), CloudError> {
        let dir = self.home.images();
        let known: Vec<ImageRecord> = self.store.read::<_, StoreError>(|tx| tx.list_whole())?;
        let is_stray = |name: &str| {
            let id = name.parse::<ImageId>().ok();
            name.starts_with(embedded::UNFINISHED)
                || id.is_some_and(|id| id != embedded::id() && !known.iter().any(|record| record.id == id))
        };
        let entries = fs::read_dir(&dir).map_err(CloudError::file(&dir, "read"))?;
        if entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_stray))
            && let Some(_lock) = self.home.try_lock(&dir)?
        {
            self.sweep_images_locked()?;
        }
        Ok(())
    }

    fn sweep_images_locked(&self) -> Result<(), CloudError> {
        let dir = self.home.images();
        let kept: Vec<ImageId> = self.store.write::<_, CloudError>(|tx| {
            let used = images_in_use(tx)?;
            let mut kept = vec![embedded::id()];
            for record in tx.list_whole::<ImageRecord>()? {
                if record.deregistered.is_none() || used.contains(&record.id) {
                    kept.push(record.id);
                } else {
                    tx.remove::<ImageRecord>(&record.id.to_string())?;
                }
            }
            Ok(kept)
        })?;
        embedded::remove_unfinished(&dir).map_err(CloudError::file(&dir, "clean up"))?;
        for entry in fs::read_dir(&dir).map_err(CloudError::file(&dir, "read"))? {
            let path = entry.map_err(CloudError::file(&dir, "read"))?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<ImageId>().ok());
            // An unregistered directory holds an older version's embedded image, or an interrupted import.
            if id.is_some_and(|id| !kept.contains(&id)) && path.join(MANIFEST).exists() {
                fs::remove_dir_all(&path).map_err(CloudError::file(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

/// Returns the images that volumes or snapshots are based on, and those whose kernels instances boot.
fn images_in_use(tx: &Transaction) -> Result<Vec<ImageId>, CloudError> {
    let mut used: Vec<ImageId> = tx.list_whole::<InstanceRecord>()?.iter().map(|record| record.image_id).collect();
    used.extend(tx.list_whole::<VolumeRecord>()?.iter().filter_map(|record| record.image_id));
    used.extend(tx.list_whole::<SnapshotRecord>()?.iter().filter_map(|record| record.image_id));
    Ok(used)
}

fn embedded_record() -> ImageRecord {
    ImageRecord {
        id: embedded::id(),
        name: embedded::NAME.into(),
        description: "Linux with BusyBox and the Wisp agent, embedded in the binary".into(),
        created: now(),
        owner: "wisp".into(),
        visibility: Visibility::Public,
        source_instance: None,
        deregistered: None,
        imds_support: None,
        tags: Default::default(),
    }
}

fn image_of(instance: InstanceId, name: &str, description: &str) -> ImageRecord {
    ImageRecord {
        id: new_id(),
        name: name.into(),
        description: description.into(),
        created: now(),
        owner: owner(),
        visibility: Visibility::Private,
        source_instance: Some(instance),
        deregistered: None,
        imds_support: None,
        tags: Default::default(),
    }
}

/// Returns the user's name on this host, or `self` if it is unknown.
pub(super) fn owner() -> String {
    std::env::var("USER").unwrap_or_else(|_| "self".into())
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
