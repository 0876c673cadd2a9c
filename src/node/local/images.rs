//! The images directory: the bundles of registered images, and the embedded image.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::LocalNode;
use crate::bundle::{self, Verified};
use crate::embedded;
use crate::error::NodeError;
use crate::home::{Home, write_private};
use crate::host::{Guard, HostImages, ImageBuild, ImageHost, ImageImport, UnfinishedImage};
use crate::image::{Image, MANIFEST, Manifest, RootEntry};
use crate::import::root::{RootOptions, agent_of, import_root};
use crate::import::{ImportError, ImportProgress};
use crate::machine_config::{backing_files, resolved};
use disk::{disk_image, sparse};
use ec2::ImageId;
use machine::config::DiskFormat;

/// The directory of a new image. The lock is held until the image has a record, so an unfinished directory that is
/// found under the lock was left by a killed process.
#[derive(Debug)]
struct Scratch {
    dir: TempDir,
    lock: File,
}

impl ImageHost for LocalNode {
    fn open(&self, id: ImageId) -> Result<Image, NodeError> {
        let dir = match id == embedded::id() {
            true => embedded::unpacked(&self.home)?,
            false => self.home.images().join(id.to_string()),
        };
        Ok(Image::open(&dir)?)
    }

    fn import(&self, import: &ImageImport, progress: &dyn ImportProgress) -> Result<UnfinishedImage, NodeError> {
        let source = import.source;
        let is_bundle = bundle::is_one(source)?;
        if !is_bundle && import.name.is_none() {
            let reason = "a root file system has no name: specify one with --name";
            return Err(ImportError::unusable(source, reason).into());
        }
        let kernel = self.open(embedded::id())?;
        let scratch = self.scratch(self.home.lock(&self.home.images())?)?;
        let into = scratch.dir.path();
        let manifest = if is_bundle {
            bundle::import_bundle(source, into, &kernel.manifest.kernel.sha256, progress)?
        } else {
            let options = RootOptions {
                name: import.name.unwrap_or_default().into(),
                description: import.description.unwrap_or_default().into(),
                default_user: import.root.default_user.clone(),
                cmdline: import.root.cmdline.clone(),
                size: import.root.size,
                cloud_init: import.root.cloud_init,
            };
            import_root(source, &options, &kernel, &agent_of(&kernel)?, into, progress)?
        };
        Ok(UnfinishedImage { manifest, files: Guard::new(scratch) })
    }

    fn build(&self, build: &ImageBuild, lock: Guard) -> Result<UnfinishedImage, NodeError> {
        let scratch = self.scratch(lock.downcast().map_err(|_| NodeError::ForeignHandle)?)?;
        let manifest = self.build_in(scratch.dir.path(), build)?;
        if let Some((saved, memory)) = build.memory
            && let Some(saved) = saved.files.downcast_ref::<TempDir>()
        {
            memory.put(saved.path(), scratch.dir.path())?;
        }
        Ok(UnfinishedImage { manifest, files: Guard::new(scratch) })
    }

    fn keep(&self, image: UnfinishedImage, id: ImageId) -> Result<Guard, NodeError> {
        let Scratch { dir, lock } = image.files.downcast().map_err(|_| NodeError::ForeignHandle)?;
        let path = self.home.images().join(id.to_string());
        fs::rename(dir.path(), &path).map_err(NodeError::file(&path, "create"))?;
        // The directory has been moved, so `TempDir` must not remove it.
        let _ = dir.keep();
        Ok(Guard::new(lock))
    }

    fn export(&self, id: ImageId, destination: &Path, progress: &dyn ImportProgress) -> Result<(), NodeError> {
        Ok(bundle::export(&self.open(id)?.dir, destination, progress)?)
    }

    fn verify(&self, id: ImageId, progress: &dyn ImportProgress) -> Result<Vec<Verified>, NodeError> {
        Ok(bundle::verify(&self.open(id)?.dir, progress)?)
    }

    fn lock(&self) -> Result<Guard, NodeError> {
        Ok(Guard::new(self.home.lock(&self.home.images())?))
    }

    fn try_lock(&self) -> Result<Option<Guard>, NodeError> {
        Ok(self.home.try_lock(&self.home.images())?.map(Guard::new))
    }

    fn list(&self) -> Result<HostImages, NodeError> {
        let dir = self.home.images();
        let mut images = HostImages::default();
        for entry in fs::read_dir(&dir).map_err(NodeError::file(&dir, "read"))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            images.has_unfinished |= name.starts_with(embedded::UNFINISHED);
            images.ids.extend(name.parse::<ImageId>().ok());
        }
        Ok(images)
    }

    fn sweep(&self, kept: &[ImageId]) -> Result<(), NodeError> {
        let dir = self.home.images();
        embedded::remove_unfinished(&dir).map_err(NodeError::file(&dir, "clean up"))?;
        for id in ImageHost::list(self)?.ids.into_iter().filter(|id| !kept.contains(id)) {
            let path = dir.join(id.to_string());
            // An unregistered directory holds an older version's embedded image, or an interrupted import.
            if path.join(MANIFEST).exists() {
                fs::remove_dir_all(&path).map_err(NodeError::file(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

impl LocalNode {
    /// Creates the directory of a new image. `lock` is the lock of images.
    fn scratch(&self, lock: File) -> Result<Scratch, NodeError> {
        let images = self.home.images();
        embedded::remove_unfinished(&images).map_err(NodeError::file(&images, "clean up"))?;
        let dir = tempfile::Builder::new()
            .prefix(embedded::UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&images)
            .map_err(NodeError::file(&images, "create a directory in"))?;
        Ok(Scratch { dir, lock })
    }

    /// Builds an image in the directory `into` from a volume, and from the other files of its source.
    fn build_in(&self, into: &Path, build: &ImageBuild) -> Result<Manifest, NodeError> {
        let source = build.source;
        let mut manifest = source.manifest.clone();
        manifest.name = build.name.into();
        manifest.description = build.description.into();
        let root = manifest.root.take();
        for (file, _) in manifest.digests() {
            let (from, to) = (source.dir.join(file), into.join(file));
            // A hard link takes no space, but works only within one file system.
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(|_| ()))
                .map_err(NodeError::file(&to, "create"))?;
        }
        if let Some(entry) = root {
            let path = into.join(&entry.file);
            let disk = resolved(self.home.volumes().join(&build.root.file));
            let backing = backing_files(&self.home, build.root);
            disk_image::convert(&disk, DiskFormat::Qcow2, &backing, &path, DiskFormat::Raw)?;
            let digest = |file: File| sparse::sha256(&file, &|_| {});
            let sha256 = File::open(&path).and_then(digest).map_err(NodeError::file(&path, "read"))?;
            manifest.root = Some(RootEntry { sha256, format: DiskFormat::Raw, ..entry });
        }
        let text = toml::to_string(&manifest).expect("a manifest is plain data");
        let path = into.join(MANIFEST);
        write_private(&path, text.as_bytes()).map_err(NodeError::file(&path, "write"))?;
        Ok(manifest)
    }
}

/// Opens an image that need not be registered: the embedded image by its name or ID, or a bundle by its directory.
/// The embedded image is the default. Returns `None` if `reference` can only be a registered image.
pub fn unregistered(home: &Home, reference: Option<&str>) -> Result<Option<Image>, NodeError> {
    let reference = reference.unwrap_or(embedded::NAME);
    if reference == embedded::NAME || reference == embedded::id().to_string() {
        return Ok(Some(Image::open(&embedded::unpacked(home)?)?));
    }
    if reference.contains('/') || Path::new(reference).join(MANIFEST).exists() {
        return Ok(Some(Image::open(Path::new(reference))?));
    }
    Ok(None)
}
