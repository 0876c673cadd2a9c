//! `CreateImage`: images of instances.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::CloudError;
use super::fork::Frozen;
use super::image::{Image, MANIFEST, RootEntry};
use super::image_memory::ImageMemory;
use super::layers;
use super::names::disk_id;
use super::registry::{Images, check_name, new_record};
use disk::{disk_image, sparse};
use ec2::state::{Action, InstanceState};
use ec2::{ErrorCode, InstanceId};
use machine::config::{BackingFile, DiskFormat};
use node::home::write_private;
use node::instance::SYNC_TIMEOUT;
use store::{ImageRecord, InstanceRecord};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageConsistency {
    /// A running guest first writes its dirty pages to its disk.
    Written,
    /// Crash-consistent, as after a power failure.
    Now,
    /// Like `Written`, including the guest's memory.
    WithMemory,
}

impl Images<'_> {
    /// Creates an image of an instance's root volume, with the kernel that the instance boots. Except with
    /// [`ImageConsistency::Now`], a running guest first writes its dirty pages to its disks. The data of a running
    /// instance is copied from a snapshot, so its guest can continue to write.
    pub fn create(
        &self,
        instance: InstanceId,
        name: &str,
        description: &str,
        moment: ImageConsistency,
    ) -> Result<ImageRecord, CloudError> {
        check_name(name)?;
        self.check_name_is_free(name)?;
        let record = self.cloud.instances().find(&instance.to_string())?;
        Action::ChangeVolumes.allowed(instance, record.status.state)?;
        let source = self.open_by_id(record.spec.image_id)?;
        let (Some(root), Some(entry)) = (self.cloud.volumes().of(&record)?.into_iter().next(), &source.manifest.root)
        else {
            return Err(CloudError::refused(
                ErrorCode::Unsupported,
                format!("Cannot create an image of the instance '{instance}': it has no root volume."),
                None,
            ));
        };
        let of_source = self
            .cloud
            .store
            .read::<_, CloudError>(|tx| Ok(tx.get::<ImageRecord>(&record.spec.image_id.to_string())?))?;
        let imds_support = of_source.and_then(|image| image.spec.imds_support);
        let mut new = new_record(name, description);
        new.spec.source_instance = Some(instance);
        new.spec.imds_support = imds_support;
        if moment == ImageConsistency::WithMemory {
            return self.create_with_memory(new, &record, &source, entry);
        }
        let running = record.status.state == InstanceState::Running;
        if running && moment == ImageConsistency::Written {
            self.cloud.dir(instance).sync(SYNC_TIMEOUT)?;
        }
        let snapshot = if running {
            Some(self.cloud.snapshots().create(root.meta.id, "Created for an image", Default::default())?)
        } else {
            None
        };
        let (file, backing) = match &snapshot {
            Some(snapshot) => (&snapshot.status.file, &snapshot.status.backing),
            None => (&root.status.file, &root.status.backing),
        };
        let made = layers::backing_files(&self.cloud.home, &root.meta.id, backing.as_deref()).and_then(|backing| {
            let disk = (self.cloud.home.volumes().join(file), backing);
            self.build(new, &source, entry, &disk, |_| Ok(()))
        });
        if let Some(snapshot) = snapshot {
            self.cloud.snapshots().delete(snapshot.meta.id)?;
        }
        made
    }

    /// Creates an image of a running instance's root volume and memory, both captured at the same time.
    fn create_with_memory(
        &self,
        new: ImageRecord,
        record: &InstanceRecord,
        source: &Image,
        entry: &RootEntry,
    ) -> Result<ImageRecord, CloudError> {
        self.cloud.instances().check_freezable(record)?;
        if self.cloud.volumes().of(record)?.len() > 1 {
            return Err(CloudError::refused(
                ErrorCode::UnsupportedOperation,
                format!(
                    "The instance '{}' has volumes other than its root volume. An image with memory can contain only \
                     the root volume.",
                    record.meta.id
                ),
                Some("Detach the other volumes first: `wisp volume detach`.".into()),
            ));
        }
        // The image can also be cold-booted, so the disk must be consistent.
        self.cloud.dir(record.meta.id).sync(SYNC_TIMEOUT)?;
        let Frozen { saved, volumes, sweeping, _changing, .. } = self.cloud.instances().freeze(record)?;
        drop(sweeping);
        let root = &volumes[0];
        let memory = ImageMemory::of_instance(record, disk_id(root));
        let backing = layers::backing_files(&self.cloud.home, &root.meta.id, root.status.backing.as_deref())?;
        let disk = (self.cloud.home.volumes().join(&root.status.file), backing);
        let put = |bundle: &Path| memory.put(saved.path(), bundle);
        self.build(new, source, entry, &disk, put)
    }

    /// Builds the image of `record` from a root disk (qcow2) with its backing files, and from the other files of
    /// `source`. `finish` may add files to its directory.
    fn build(
        &self,
        record: ImageRecord,
        source: &Image,
        entry: &RootEntry,
        (disk, backing): &(PathBuf, Vec<BackingFile>),
        finish: impl FnOnce(&Path) -> Result<(), CloudError>,
    ) -> Result<ImageRecord, CloudError> {
        let (_lock, scratch) = self.scratch()?;
        let mut manifest = source.manifest.clone();
        manifest.name.clone_from(&record.spec.name);
        manifest.description.clone_from(&record.spec.description);
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
}
