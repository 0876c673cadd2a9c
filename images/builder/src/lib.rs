//! Builds Wisp's embedded image: a root file system ([`rootfs`]) and the bundle around it ([`bundle`]). The build needs
//! no root privileges and is reproducible. [`inputs`] detects a bundle that does not match the repository.

pub mod bundle;
pub mod inputs;
pub mod rootfs;

/// Time of every file in the image: 2025-01-01 00:00 UTC.
pub const EPOCH: i64 = 1_735_689_600;
