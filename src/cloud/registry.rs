//! The registered images: those that were imported or made here, and the embedded one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::CloudError;
use super::fork::Frozen;
use super::image::{Image, ImageError, MANIFEST, RootEntry};
use super::image_memory::ImageMemory;
use super::layers;
use super::machine::disk_id;
use super::warm;
use super::{Cloud, embedded, new_id, now};
use crate::ec2::id::Id;
use crate::ec2::id::Image as ImageKind;
use crate::ec2::metadata::ImdsSupport;
use crate::ec2::state::{Action, InstanceState};
use crate::ec2::{ErrorCode, ImageId, InstanceId};
use crate::host::home::write_private;
use crate::host::{disk_image, shell, sparse};
use crate::store::{ImageRecord, InstanceRecord, SnapshotRecord, StoreError, Transaction, Visibility, VolumeRecord};
use crate::vmm::config::{BackingFile, DiskFormat};

/// Which moment of an instance an image is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When a running guest has written to its disk what it has.
    Written,
    /// Now: what a power cut would leave.
    Now,
    /// When a running guest has written what it has, with its memory.
    WithMemory,
}

impl Cloud {
    /// The image that `reference` stands for: an identifier, the beginning of one, or a name; the embedded one when
    /// nothing is said.
    pub fn image(&mut self, reference: Option<&str>) -> Result<(ImageRecord, Image), CloudError> {
        self.register_embedded()?;
        let record = self.image_record(reference.unwrap_or(embedded::NAME))?;
        let image = self.open_image(record.id)?;
        Ok((record, image))
    }

    /// The memory of the image that `reference` stands for, if it has any. The embedded image has none, and is not unpacked
    /// for this.
    pub fn image_memory(&mut self, reference: Option<&str>) -> Result<Option<ImageMemory>, CloudError> {
        let record = self.image_record(reference.unwrap_or(embedded::NAME))?;
        Ok(self.check_image(&record)?.and_then(|image| ImageMemory::of(&image)))
    }

    /// Opens an image, unless it is the embedded one, which may have to be unpacked.
    pub(super) fn check_image(&self, record: &ImageRecord) -> Result<Option<Image>, CloudError> {
        if record.id == embedded::id() { Ok(None) } else { self.open_image(record.id).map(Some) }
    }

    /// The image that `reference` stands for, registered or embedded. Nothing is changed.
    pub fn image_record(&mut self, reference: &str) -> Result<ImageRecord, CloudError> {
        let known = self.known_images()?;
        if let Some(named) = known.iter().find(|record| record.name == reference) {
            return Ok(named.clone());
        }
        if !Id::<ImageKind>::looks_like(reference) {
            if reference.contains('/') {
                return Err(CloudError::refused(
                    ErrorCode::InvalidAmiIdNotFound,
                    format!("The directory '{reference}' is no registered image."),
                    Some(format!(
                        "`wisp {}` runs it; `wisp image ls` lists the registered ones.",
                        shell::command(["run", reference])
                    )),
                ));
            }
            return Err(ImageId::not_found(reference).into());
        }
        let id = ImageId::find(reference, known.iter().map(|record| record.id))?;
        Ok(known.into_iter().find(|record| record.id == id).expect("it was found among these"))
    }

    /// All registered images.
    pub fn images(&mut self) -> Result<Vec<ImageRecord>, CloudError> {
        self.register_embedded()?;
        self.known_images()
    }

    /// All registered images, and the embedded one, which is registered when it is first used.
    fn known_images(&mut self) -> Result<Vec<ImageRecord>, CloudError> {
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
            let folder = embedded::unpacked(&self.home).map_err(ImageError::Embedded)?;
            return Ok(Image::open(&folder)?);
        }
        Ok(Image::open(&self.home.images().join(id.to_string()))?)
    }

    /// The embedded image is registered like any other. Another version of Wisp brings another one, which takes over
    /// the name.
    pub(super) fn register_embedded(&mut self) -> Result<(), CloudError> {
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

    /// Makes an image of an instance's root volume: a copy of what is on it, with the kernel that the instance boots.
    ///
    /// A running guest is asked to write what it has to its disk first, unless `no_reboot`; the copy is made of a snapshot
    /// then, so that it goes on writing. An image may keep a running guest's memory too.
    pub fn create_image(
        &mut self,
        instance: InstanceId,
        name: &str,
        description: &str,
        moment: Moment,
    ) -> Result<ImageRecord, CloudError> {
        check_name(name)?;
        self.check_name_is_free(name)?;
        let record = self.instance(&instance.to_string())?;
        Action::ChangeVolumes.allowed(instance, record.state)?;
        let source = self.open_image(record.image_id)?;
        let (Some(root), Some(entry)) = (self.volumes_of(&record)?.into_iter().next(), &source.manifest.root) else {
            return Err(CloudError::refused(
                ErrorCode::Unsupported,
                format!("{instance} has no root volume to make an image of."),
                None,
            ));
        };
        let of_source =
            self.store.read::<_, CloudError>(|tx| Ok(tx.get::<ImageRecord>(&record.image_id.to_string())?))?;
        let imds_support = of_source.and_then(|image| image.imds_support);
        let new = ImageRecord { imds_support, ..image_of(instance, name, description) };
        if moment == Moment::WithMemory {
            return self.create_image_with_memory(new, &record, &source, entry);
        }
        let running = record.state == InstanceState::Running;
        if running && moment == Moment::Written {
            self.folder(instance).sync(SYNC_TIMEOUT)?;
        }
        let snapshot =
            if running { Some(self.create_snapshot(root.id, "for an image", Default::default())?) } else { None };
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

    /// Makes an image of a running instance's root volume and memory, both of the same moment.
    fn create_image_with_memory(
        &mut self,
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
                    "The instance '{}' has volumes besides its root, and its memory knows them: an image has a root only.",
                    record.id
                ),
                Some("Detach them first: `wisp volume detach`.".into()),
            ));
        }
        // So that it can be booted, too.
        self.folder(record.id).sync(SYNC_TIMEOUT)?;
        let Frozen { saved, volumes, sweeping, _changing, .. } = self.freeze(record)?;
        drop(sweeping);
        let root = &volumes[0];
        let memory = ImageMemory::of_instance(record, disk_id(root));
        let backing = layers::backing_files(&self.home, &root.id, root.backing.as_deref())?;
        let disk = (self.home.volumes().join(&root.file), backing);
        let put = |bundle: &Path| memory.put(saved.path(), bundle);
        self.build_image(new, source, entry, &disk, put)
    }

    /// Makes the image of `record` of a root disk (qcow2) with its backing files, and the rest of `source`; `finish` may
    /// add to its folder.
    fn build_image(
        &mut self,
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
            let (from, to) = (source.folder.join(&file), scratch.path().join(&file));
            // The same file twice takes no room; another file system takes a copy.
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(|_| ()))
                .map_err(CloudError::file(&to, "made"))?;
        }
        let root = scratch.path().join(&entry.file);
        disk_image::convert(&layers::resolved(disk.clone()), DiskFormat::Qcow2, backing, &root, DiskFormat::Raw)?;
        let digest = |file: fs::File| sparse::sha256(&file, &|_| {});
        let sha256 = fs::File::open(&root).and_then(digest).map_err(CloudError::file(&root, "read"))?;
        manifest.root = Some(RootEntry { sha256, format: DiskFormat::Raw, ..entry.clone() });
        let text = toml::to_string(&manifest).expect("a manifest is plain data");
        let path = scratch.path().join(MANIFEST);
        write_private(&path, text.as_bytes()).map_err(CloudError::file(&path, "written"))?;
        finish(scratch.path())?;
        self.register(record, scratch)
    }

    /// A folder for an image that is being made. The lock is to be held until the image has its entry: what is found
    /// unfinished under it was left by a process that is gone.
    pub(super) fn scratch_image(&self) -> Result<(fs::File, tempfile::TempDir), CloudError> {
        let images = self.home.images();
        let lock = self.home.lock(&images)?;
        embedded::remove_unfinished(&images).map_err(CloudError::file(&images, "cleaned"))?;
        let scratch = tempfile::Builder::new()
            .prefix(embedded::UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&images)
            .map_err(CloudError::file(&images, "written"))?;
        Ok((lock, scratch))
    }

    /// Refuses a name that a registered image has.
    pub(super) fn check_name_is_free(&mut self, name: &str) -> Result<(), CloudError> {
        self.store.read(|tx| name_is_free(tx, name))
    }

    /// Changes what is said of an image; what is left out stays.
    pub fn modify_image(
        &mut self,
        reference: &str,
        visibility: Option<Visibility>,
        description: Option<String>,
        imds_support: Option<ImdsSupport>,
    ) -> Result<ImageRecord, CloudError> {
        let id = self.image_record(reference)?.id;
        if id == embedded::id() {
            return Err(CloudError::refused(
                ErrorCode::OperationNotPermitted,
                format!("The image '{}' is inside wisp and cannot be modified.", embedded::NAME),
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

    /// Gives a complete bundle its place, and its entry.
    pub(super) fn register(
        &mut self,
        record: ImageRecord,
        bundle: tempfile::TempDir,
    ) -> Result<ImageRecord, CloudError> {
        let folder = self.home.images().join(record.id.to_string());
        self.store.write(|tx| {
            name_is_free(tx, &record.name)?;
            fs::rename(bundle.path(), &folder).map_err(CloudError::file(&folder, "made"))?;
            let _ = bundle.keep();
            tx.insert(&record)?;
            Ok(record)
        })
    }

    /// Deregisters an image. Its files stay for as long as an instance or a volume uses them.
    pub fn deregister_image(&mut self, reference: &str) -> Result<ImageRecord, CloudError> {
        let mut record = self.image_record(reference)?;
        if record.id == embedded::id() {
            return Err(CloudError::refused(
                ErrorCode::OperationNotPermitted,
                format!("The image '{}' is inside wisp and cannot be deregistered.", record.name),
                None,
            ));
        }
        record.deregistered = Some(now());
        self.store.write::<_, StoreError>(|tx| tx.put(&record))?;
        warm::remove_of(&self.home, &self.home.images().join(record.id.to_string()))?;
        self.sweep_images();
        Ok(record)
    }

    /// Removes the files of images that can no longer be used. A failure becomes a notice: the user asked for something
    /// else, and a later command tries again.
    pub(super) fn sweep_images(&mut self) {
        let lock = self.home.lock(&self.home.images()).map_err(CloudError::from);
        let swept = lock.and_then(|_lock| self.sweep_images_locked());
        self.notice_failed("files of deregistered images cannot be removed yet", swept);
    }

    /// The same for what a command left that was killed: if there is any, and nobody is making an image now.
    pub(super) fn sweep_stray_images(&mut self) -> Result<(), CloudError> {
        let folder = self.home.images();
        let known: Vec<ImageRecord> = self.store.read::<_, StoreError>(|tx| tx.list_whole())?;
        let is_stray = |name: &str| {
            let id = name.parse::<ImageId>().ok();
            name.starts_with(embedded::UNFINISHED)
                || id.is_some_and(|id| id != embedded::id() && !known.iter().any(|record| record.id == id))
        };
        let entries = fs::read_dir(&folder).map_err(CloudError::file(&folder, "read"))?;
        if entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_stray))
            && let Some(_lock) = self.home.try_lock(&folder)?
        {
            self.sweep_images_locked()?;
        }
        Ok(())
    }

    fn sweep_images_locked(&mut self) -> Result<(), CloudError> {
        let folder = self.home.images();
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
        embedded::remove_unfinished(&folder).map_err(CloudError::file(&folder, "cleaned"))?;
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
    let mut used: Vec<ImageId> = tx.list_whole::<InstanceRecord>()?.iter().map(|record| record.image_id).collect();
    used.extend(tx.list_whole::<VolumeRecord>()?.iter().filter_map(|record| record.image_id));
    used.extend(tx.list_whole::<SnapshotRecord>()?.iter().filter_map(|record| record.image_id));
    Ok(used)
}

/// The entry of the embedded image.
fn embedded_record() -> ImageRecord {
    ImageRecord {
        id: embedded::id(),
        name: embedded::NAME.into(),
        description: "Linux with busybox and the Wisp agent, inside the binary".into(),
        created: now(),
        owner: "wisp".into(),
        visibility: Visibility::Public,
        source_instance: None,
        deregistered: None,
        imds_support: None,
        tags: Default::default(),
    }
}

/// A new image of an instance.
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

/// How long a guest may take to write what it has to its disk.
const SYNC_TIMEOUT: Duration = Duration::from_secs(300);

/// Who makes images: the user's name on this host.
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

/// An image's name: 3 to 128 letters, digits and `()[] ./-'@_` (EC2 API Reference, `CreateImage`).
pub(super) fn check_name(name: &str) -> Result<(), CloudError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if (3..=128).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let what = format!("Invalid AMI name '{name}': it has 3 to 128 letters, digits and ()[] ./-'@_.");
    Err(CloudError::refused(ErrorCode::InvalidAmiNameMalformed, what, None))
}
