//! Disk images: opening, locking and repairing raw and qcow2 images with their backing files, new overlays, and copies
//! that keep holes and leave space on the host.

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
