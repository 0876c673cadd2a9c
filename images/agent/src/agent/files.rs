//! Accesses files in directories that users other than root can change.
//!
//! The directory's owner may have replaced a name with a link to a system file, a pipe without a writer, or a device.
//! So these functions take an open directory and one name in it, follow no link and never block. They change owner
//! and mode through an open descriptor, never by name.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

/// Maximum attempts to create a temporary file while another process keeps taking its name.
const ATTEMPTS: usize = 8;

/// User ID and group ID.
pub type Owner = (u32, u32);

/// Opens a directory that only root can replace. Follows links in its path.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a directory, or creates it with `mode`. Fails if the name is a symbolic link.
pub fn open_or_make_directory(parent: impl AsFd, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            Err(io::Error::other(format!("{name} is not a directory, or is a symbolic link, which is not allowed")))
        }
        opened => Ok(opened?),
    }
}

/// Reads a file. Returns `None` if it is missing. Fails for links, devices, pipes and files longer than `limit` bytes.
pub fn read(parent: impl AsFd, name: &str, limit: u64) -> io::Result<Option<(Vec<u8>, Stat)>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(io::Error::other(format!("{name} is a symbolic link, which is not allowed")));
        }
        Err(errno) => return Err(errno.into()),
    };
    let stat = regular(&file, name)?;
    let mut content = Vec::new();
    File::from(file).take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("{name} has more than {limit} bytes")));
    }
    Ok(Some((content, stat)))
}

/// Creates or replaces a file atomically. A link of that name is replaced, not followed.
pub fn replace(parent: impl AsFd, name: &str, content: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let temporary = format!(".{name}.wisp");
    let mut file = File::from(create_new(&parent, &temporary)?);
    let written = file
        .write_all(content)
        .and_then(|()| give(&file, owner))
        .and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?))
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::renameat(&parent, temporary.as_str(), &parent, name)?));
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
    }
    written
}

/// Opens a regular system file for appending, or creates it.
pub fn append(path: &Path) -> io::Result<File> {
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?;
    regular(&file, &path.display().to_string())?;
    Ok(file.into())
}

pub fn give(file: impl AsFd, owner: Option<Owner>) -> io::Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    Ok(rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Creates a new file, so that no other process has it open.
fn create_new(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)) {
            // Remove a file that a killed agent left behind, or that the directory's owner created.
            Err(Errno::EXIST) => rustix::fs::unlinkat(&parent, name, AtFlags::empty())?,
            opened => return Ok(opened?),
        }
    }
    Err(Errno::EXIST.into())
}

fn regular(file: &OwnedFd, name: &str) -> io::Result<Stat> {
    let stat = rustix::fs::fstat(file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        _ => Err(io::Error::other(format!("{name} is not a regular file"))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    pub fn make_pipe(path: &Path) {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).unwrap();
    }

    fn directory() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let open = open_directory(dir.path()).unwrap();
        (dir, open)
    }

    #[test]
    fn links_are_not_followed() {
        let (dir, directory) = directory();
        let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
        fs::write(&target, "before").unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&target, dir.path().join("file")).unwrap();
        symlink(&target, dir.path().join(".file.wisp")).unwrap();
        symlink(&outside, dir.path().join("directory")).unwrap();
        assert!(read(&directory, "file", 100).is_err());
        assert!(append(&dir.path().join("file")).is_err());
        assert!(open_or_make_directory(&directory, "directory", 0o700).is_err());
        replace(&directory, "file", b"after", 0o640, None).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "before");
        let written = dir.path().join("file");
        assert_eq!(fs::read_to_string(&written).unwrap(), "after");
        assert_eq!(written.symlink_metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    }

    #[test]
    fn pipes_and_long_files_are_refused_without_blocking() {
        let (dir, directory) = directory();
        let pipe = dir.path().join("pipe");
        make_pipe(&pipe);
        assert!(read(&directory, "pipe", 100).unwrap_err().to_string().contains("not a regular file"));
        assert!(append(&pipe).is_err());
        fs::write(dir.path().join("long"), [0; 101]).unwrap();
        assert!(read(&directory, "long", 100).unwrap_err().to_string().contains("more than 100 bytes"));
        assert_eq!(read(&directory, "long", 101).unwrap().unwrap().0.len(), 101);
        assert!(read(&directory, "none", 100).unwrap().is_none());
    }
}
