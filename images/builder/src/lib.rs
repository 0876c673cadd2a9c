//! How Wisp's embedded image is made: a root file system ([`rootfs`]) and the bundle around it ([`bundle`]), without
//! root and reproducibly: the same inputs give the same bytes. [`inputs`] tells whether a bundle is the repository's.

pub mod bundle;
pub mod inputs;
pub mod rootfs;

/// The time of every file in the image: 2025-01-01 00:00 UTC.
pub const EPOCH: i64 = 1_735_689_600;
