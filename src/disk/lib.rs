//! Opens, locks and repairs raw and qcow2 disk images with their backing files, creates images and overlays, and makes
//! sparse copies that leave some of the host's disk space free.

pub mod copy;
mod counters;
mod disk;
pub mod disk_image;
mod image;
mod image_file;
mod lock;
mod refcounts;
pub mod space;
pub mod sparse;

pub use counters::DiskCounters;
pub use disk::{Disk, FileExtent, SECTOR};
pub use image::{Backing, BlockError, MAX_LAYERS, backing, open_alone, open_to_read, virtual_size};
pub use image_file::ImageFile;
pub use refcounts::fix as fix_refcounts;
