//! Opens, locks and repairs raw and qcow2 disk images with their backing files, creates images and overlays, and makes
//! sparse copies that leave some of the host's disk space free.

mod counters;
mod disk;
pub mod disk_image;
mod error;
mod image;
mod image_file;
mod lock;
mod refcounts;
pub mod space;
pub mod sparse;

pub use counters::DiskCounters;
pub use disk::{Disk, FileExtent};
pub use error::BlockError;
pub use image::{Backing, backing, open_alone, open_to_read, virtual_size};
pub use image_file::ImageFile;
pub use refcounts::fix as fix_refcounts;

/// Sector size in bytes: the unit of every virtio-blk address.
pub const SECTOR: u64 = 512;
/// Maximum number of backing files of a disk. Each costs a descriptor, and a read may have to search all of them.
pub const MAX_LAYERS: usize = 64;
