//! The files of images on a host.

use std::fmt::Debug;
use std::path::Path;

use super::{Guard, SavedMachine, VolumeFiles};
use crate::bundle::Verified;
use crate::error::NodeError;
use crate::image::{Image, Manifest};
use crate::image_memory::ImageMemory;
use crate::import::ImportProgress;
use ec2::ImageId;

/// Parameters for the import of a root file system. A bundle contains its own.
#[derive(Debug, Clone)]
pub struct RootChoices {
    pub default_user: String,
    pub cmdline: String,
    /// Size in bytes of a file system created from an archive.
    pub size: Option<u64>,
    /// Declares that the root file system contains cloud-init, in case the import cannot detect it.
    pub cloud_init: bool,
}

/// An import of a file or directory that the user names. Its content determines whether it is a bundle or a root file
/// system.
#[derive(Debug)]
pub struct ImageImport<'a> {
    pub source: &'a Path,
    /// Required for a root file system.
    pub name: Option<&'a str>,
    pub description: Option<&'a str>,
    pub root: &'a RootChoices,
}

/// An image that is built from an instance's root volume.
#[derive(Debug)]
pub struct ImageBuild<'a> {
    pub name: &'a str,
    pub description: &'a str,
    /// The image that the instance was launched from. It provides all files except the root file system.
    pub source: &'a Image,
    pub root: &'a VolumeFiles,
    /// The instance's memory at the time of `root`.
    pub memory: Option<(&'a SavedMachine, &'a ImageMemory)>,
}

/// The files of a new image. Dropping it removes them, unless [`ImageHost::keep`] has given them their image's ID.
#[derive(Debug)]
pub struct UnfinishedImage {
    pub manifest: Manifest,
    pub files: Guard,
}

/// The images whose files are on a host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HostImages {
    pub ids: Vec<ImageId>,
    /// A killed command left files of an unfinished image.
    pub has_unfinished: bool,
}

/// Imports, builds, opens and removes the files of images.
pub trait ImageHost: Debug + Send + Sync {
    /// Opens an image's bundle. The embedded image is unpacked first if necessary.
    fn open(&self, id: ImageId) -> Result<Image, NodeError>;

    fn import(&self, import: &ImageImport, progress: &dyn ImportProgress) -> Result<UnfinishedImage, NodeError>;

    /// Builds an image. The new image keeps `lock`, the lock of images, until it has its final name.
    fn build(&self, build: &ImageBuild, lock: Guard) -> Result<UnfinishedImage, NodeError>;

    /// Gives the files of a new image their final name.
    fn keep(&self, image: UnfinishedImage, id: ImageId) -> Result<Guard, NodeError>;

    /// Writes an image's bundle to a file that the user names.
    fn export(&self, id: ImageId, destination: &Path, progress: &dyn ImportProgress) -> Result<(), NodeError>;

    /// Compares an image's files with their digests.
    fn verify(&self, id: ImageId, progress: &dyn ImportProgress) -> Result<Vec<Verified>, NodeError>;

    /// Waits for the lock that a command holds while it creates or removes an image.
    fn lock(&self) -> Result<Guard, NodeError>;

    /// Takes the lock of images. Returns `None` if another command holds it.
    fn try_lock(&self) -> Result<Option<Guard>, NodeError>;

    fn list(&self) -> Result<HostImages, NodeError>;

    /// Removes unfinished images and all images except those in `kept`. The caller holds the lock.
    fn sweep(&self, kept: &[ImageId]) -> Result<(), NodeError>;
}
