//! The files of volumes and snapshots on a host.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::Guard;
use crate::error::NodeError;
use ec2::VolumeId;
use machine::config::DiskFormat;
use machine::limits::DiskLimits;

/// A file that contains part of a volume's or snapshot's data and is no longer written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Name in the node's storage, such as `volumes/vol-0123456789abcdef0.1.qcow2`.
    pub file: String,
    pub format: DiskFormat,
}

/// The files with a volume's or snapshot's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFiles {
    /// Name of the topmost file (qcow2), without a directory.
    pub file: String,
    /// Backing files, topmost first.
    pub backing: Vec<Layer>,
}

/// A volume as a machine's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDisk {
    pub volume: VolumeId,
    pub files: VolumeFiles,
    pub limits: Option<DiskLimits>,
}

/// The initial content of a volume's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewFile<'a> {
    Empty {
        /// In bytes.
        size: u64,
    },
    /// An overlay over another file.
    Overlay {
        base: &'a Layer,
        /// Smallest size in bytes. The overlay is at least as large as the other file, which an interrupted command may
        /// have grown.
        size: Option<u64>,
    },
}

/// Creates, grows and removes the files of volumes and snapshots.
pub trait VolumeHost: Debug + Send + Sync {
    /// Waits for the lock that keeps other commands from sweeping files that have no record yet.
    fn lock(&self) -> Result<Guard, NodeError>;

    /// Waits for the lock that a command holds from before its snapshot has a record until the snapshot is complete.
    fn lock_snapshots(&self) -> Result<Guard, NodeError>;

    /// Takes the lock of snapshots. Returns `None` if another command holds it.
    fn try_lock_snapshots(&self) -> Result<Option<Guard>, NodeError>;

    /// Creates a volume's file, and returns the volume's size in bytes.
    fn create(&self, file: &str, content: &NewFile) -> Result<u64, NodeError>;

    /// Grows a volume that no machine uses.
    fn grow(&self, files: &VolumeFiles, size: u64) -> Result<(), NodeError>;

    fn remove(&self, file: &str) -> Result<(), NodeError>;

    /// Returns the names of all files of volumes and snapshots.
    fn list(&self) -> Result<Vec<String>, NodeError>;

    /// Removes all files of volumes and snapshots except those in `kept`. The caller holds the lock.
    fn sweep(&self, kept: &BTreeSet<String>) -> Result<(), NodeError>;

    /// Reads the backing files of a volume from image headers, which are trusted only for volumes of older versions.
    /// The error is a sentence.
    fn read_backing(&self, file: &str) -> Result<Vec<Layer>, String>;
}
