//! A file system with nothing in it but the machine's files, each where it was (mount_namespaces(7), pivot_root(2)).
//!
//! Landlock says what can be opened; here the rest is not even there: no sockets of other programs to connect to, no
//! processes to be seen, nothing to be looked up.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::files::{Access, Grant, Grants};

/// Where the new root is put together: a folder that every host has, and no machine's file is in.
const PLACE: &str = "/sys";

/// Makes the root of a mount namespace of the caller's own; all of it or, up to the last step, nothing that shows.
pub fn enter(grants: &Grants) -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("wisp", PLACE, "tmpfs", flags, Some(c"mode=0755,size=1m"))?;
    let entered = grants.iter().try_for_each(show).and_then(|()| {
        chdir(PLACE)?;
        pivot_root(".", ".")
    });
    if entered.is_err() {
        // The process goes on in the root that it has.
        chdir("/")?;
        let _ = unmount(PLACE, UnmountFlags::DETACH);
        return entered;
    }
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", MountFlags::BIND | flags | MountFlags::RDONLY, c"")
}

/// Puts a file or folder at its place.
fn show(grant: &Grant) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let place = below(&grant.path);
    let Ok(metadata) = grant.path.metadata() else { return Ok(()) };
    if metadata.is_dir() {
        fs::create_dir_all(&place).map_err(errno)?;
    } else {
        fs::create_dir_all(place.parent().unwrap_or(&place)).map_err(errno)?;
        // Never one that is there: it may be shown already, and be the file itself.
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
    // A mount with flags that may not be taken from it stays as it is: Landlock and the filters say the same.
    let _ = mount_remount(&place, flags, c"");
    Ok(())
}

fn below(path: &Path) -> PathBuf {
    Path::new(PLACE).join(path.strip_prefix("/").unwrap_or(path))
}
