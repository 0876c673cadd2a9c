//! A root directory that has only the machine's files, each at its original path (mount_namespaces(7), pivot_root(2)).
//!
//! Landlock only restricts opening files. In this root directory, other files do not exist, so the VMM cannot connect
//! to other programs' sockets either.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::files::{Access, Grant, Grants};

/// The mount point where the new root is built: it exists on every host and contains none of the machine's files.
const PLACE: &str = "/sys";

/// Enters the new root. Requires a private mount namespace. If this fails before pivot_root, the root is unchanged.
pub fn enter(grants: &Grants) -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("wisp", PLACE, "tmpfs", flags, Some(c"mode=0755,size=1m"))?;
    let entered = grants.iter().try_for_each(show).and_then(|()| {
        chdir(PLACE)?;
        pivot_root(".", ".")
    });
    if entered.is_err() {
        chdir("/")?;
        let _ = unmount(PLACE, UnmountFlags::DETACH);
        return entered;
    }
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", MountFlags::BIND | flags | MountFlags::RDONLY, c"")
}

/// Mounts a file or directory at its original path in the new root. Skips one that does not exist.
fn show(grant: &Grant) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let place = below(&grant.path);
    let Ok(metadata) = grant.path.metadata() else { return Ok(()) };
    if metadata.is_dir() {
        fs::create_dir_all(&place).map_err(errno)?;
    } else {
        fs::create_dir_all(place.parent().unwrap_or(&place)).map_err(errno)?;
        // Do not truncate an existing file: it may be one of the machine's files, already mounted.
        match File::create_new(&place) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(errno(error)),
            _ => {}
        }
    }
    mount_bind(&grant.path, &place)?;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NOEXEC;
    if grant.access == Access::Read {
        flags |= MountFlags::RDONLY;
    }
    if metadata.is_dir() || metadata.is_file() {
        flags |= MountFlags::NODEV;
    }
    // The remount fails if the mount's flags are locked. Landlock and the seccomp filters enforce the same rules.
    let _ = mount_remount(&place, flags, c"");
    Ok(())
}

fn below(path: &Path) -> PathBuf {
    Path::new(PLACE).join(path.strip_prefix("/").unwrap_or(path))
}
