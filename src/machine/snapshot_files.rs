//! The files of a snapshot.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::untrusted::{self, Presence};

pub const STATE: &str = "state";
pub const MEMORY: &str = "memory";
/// The base snapshot's memory file, if [`MEMORY`] only contains changed pages.
pub const BASE: &str = "base";

/// Moves a snapshot to a trusted directory on the same file system, so that the VMM cannot replace its files by links.
/// The state file is moved last, because it makes the snapshot valid.
pub fn take(from: &Path, to: &Path) -> io::Result<()> {
    use Presence::{Optional, Required};
    untrusted::take(from, to, &[(BASE, Optional), (MEMORY, Required), (STATE, Required)])
}

/// Returns the disk space of a snapshot in bytes.
pub fn bytes(dir: &Path) -> u64 {
    let files = [STATE, MEMORY, BASE].map(|name| dir.join(name).symlink_metadata());
    files.iter().flatten().map(|metadata| metadata.blocks() * 512).sum()
}

/// Removes a snapshot, even an incomplete one. The state file is removed first, so that the rest is not valid.
pub fn remove(dir: &Path) -> io::Result<()> {
    if dir.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        untrusted::remove_in(dir, STATE)?;
    }
    untrusted::remove(dir)
}
