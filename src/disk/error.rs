//! Errors of opening and changing disk images.

use std::io;
use std::path::PathBuf;

use super::{MAX_LAYERS, SECTOR};

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("cannot open the disk image {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// Another program has the file open, and that program or this one opens it for writing.
    #[error(
        "the disk image {} is in use by another program, such as a running VM or qemu-nbd. Stop that program first",
        .0.display()
    )]
    InUse(PathBuf),
    #[error("{} is neither a regular file nor a block device", .0.display())]
    NotADisk(PathBuf),
    #[error("{} is not a valid {format} image: {source}", path.display())]
    Format { path: PathBuf, format: &'static str, source: io::Error },
    #[error("cannot create a copy-on-write overlay for {} in {}: {source}", path.display(), dir.display())]
    Layer { path: PathBuf, dir: PathBuf, source: io::Error },
    #[error("the disk image {} is empty. It must have at least one sector of {SECTOR} bytes", .0.display())]
    Empty(PathBuf),
    #[error("the disk image {} stores its data in an external file, which is not supported", .0.display())]
    DataFile(PathBuf),
    /// The header specifies no format for the backing file, or an unsupported one.
    #[error(
        "the backing file of the disk image {} has the format {format:?}; it must be \"raw\" or \"qcow2\"",
        path.display()
    )]
    BackingFormat {
        path: PathBuf,
        /// Empty if the header specifies none.
        format: String,
    },
    #[error(
        "{} depends on the backing file {backing:?}, but only standalone images are supported. \
         To merge the two files, run `qemu-img convert -O qcow2 {} whole.qcow2`", path.display(), path.display()
    )]
    HasBacking {
        path: PathBuf,
        /// Name of the backing file in the header.
        backing: String,
    },
    #[error(
        "the header of the disk image {} names {} as its backing file, but {} was expected. The image was not opened, \
         because its header may have been tampered with", path.display(), quoted(found), quoted(expected)
    )]
    OtherBacking { path: PathBuf, found: Option<String>, expected: Option<String> },
    #[error("the raw disk image {} cannot have a backing file", .0.display())]
    RawBacking(PathBuf),
    #[error("the disk image {} has too many backing files. The maximum is {MAX_LAYERS}", .0.display())]
    TooManyLayers(PathBuf),
    #[error("the overlay {} is not based on {}, the disk's current file", layer.display(), present.display())]
    NotOver { layer: PathBuf, present: PathBuf },
    #[error("the overlay {} has {size} bytes, but the disk has {present}. It must not be smaller", layer.display())]
    SmallLayer { layer: PathBuf, size: u64, present: u64 },
    #[error("the disk {0:?} is read-only or ephemeral, so it cannot {1}")]
    NotWritten(String, &'static str),
    #[error("the disk {id:?} has {present} bytes and cannot be shrunk to {size}")]
    Shrink { id: String, size: u64, present: u64 },
    #[error(
        "the size of the disk image {}, {size} bytes, is not a multiple of the sector size, {SECTOR} bytes. \
         Extend the image with `truncate -s {rounded}`, or attach it read-only", path.display()
    )]
    PartialDisk { path: PathBuf, size: u64, rounded: u64 },
    #[error("the disk size {0} is not valid: it must be a multiple of {SECTOR} bytes")]
    PartialSector(u64),
    #[error("cannot {what} the disk {id:?}: {source}")]
    Host { id: String, what: &'static str, source: io::Error },
}

fn quoted(backing: &Option<String>) -> &str {
    backing.as_deref().unwrap_or("no file")
}
