//! File access for commands and the supervisor, where a compromised VMM may have written the directory.
//!
//! Such a VMM can put anything at a name in its directory: a link to another file of the user's, a FIFO that blocks the
//! opener, a file of any size. These functions do not follow a link in a path's last component or wait for a peer.
//! They read no more than the caller allows. The parent directories must be trusted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::fs::ignore_not_found;
pub use crate::unix_socket::connect;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, renameat, statat};

/// The size limit of a small record, such as `end.json`.
pub const RECORD_LIMIT: u64 = 1 << 20;

/// Opens a file for reading. Fails if it is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(name_link)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(unexpected("not a regular file")) }
}

/// Reads a regular file. Fails if it is longer than `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    // A process may append to the file meanwhile.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(unexpected(&format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads the last `limit` bytes of a regular file.
pub fn read_tail(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let start = file.metadata()?.len().saturating_sub(limit);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes the file or directory at `path`, if it exists. Removes a link itself, not its target.
pub fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => ignore_not_found(fs::remove_dir_all(path)),
        Ok(_) => ignore_not_found(fs::remove_file(path)),
        Err(error) => ignore_not_found(Err(error)),
    }
}

/// Removes a file from `dir`, without following a link at `dir`. Neither needs to exist.
pub fn remove_in(dir: &Path, name: &str) -> io::Result<()> {
    let unlink = || Ok(rustix::fs::unlinkat(open_directory(dir)?, name, AtFlags::empty())?);
    ignore_not_found(unlink())
}

/// Moves regular files from a VMM's directory into a trusted directory on the same file system, in order.
/// If one is not a regular file, removes it and fails; later files are not moved.
pub fn take(from: &Path, to: &Path, names: &[(&str, Presence)]) -> io::Result<()> {
    let from = open_directory(from)?;
    let to = open_directory(to)?;
    for (name, presence) in names {
        match renameat(&from, *name, &to, *name) {
            Err(rustix::io::Errno::NOENT) if *presence == Presence::Optional => continue,
            result => result?,
        }
        // The check comes after the move, because the VMM can no longer replace the file.
        if FileType::from_raw_mode(statat(&to, *name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) != FileType::RegularFile {
            let _ = rustix::fs::unlinkat(&to, *name, AtFlags::empty());
            return Err(unexpected(&format!("{name:?} is not a regular file")));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Required,
    Optional,
}

fn open_directory(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected file in the VMM's directory: {what}"))
}

/// Replaces the kernel's error for a link, "too many levels of symbolic links".
fn name_link(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ELOOP) { unexpected("a symbolic link") } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("victim"), "the user's").unwrap();
            fs::create_dir(dir.path().join("own")).unwrap();
            Bench { dir }
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join(name)
        }

        fn victim_is_whole(&self) -> bool {
            fs::read_to_string(self.path("victim")).is_ok_and(|text| text == "the user's")
        }
    }

    fn make_fifo(path: &Path) {
        rustix::fs::mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
    }

    #[test]
    fn read_link_fifo_directory_is_refused() {
        let bench = Bench::new();
        symlink(bench.path("victim"), bench.path("own/link")).unwrap();
        make_fifo(&bench.path("own/fifo"));
        fs::create_dir(bench.path("own/directory")).unwrap();
        let _listener = UnixListener::bind(bench.path("own/socket")).unwrap();
        for name in ["link", "fifo", "directory", "socket"] {
            assert!(read(&bench.path("own").join(name), 100).is_err(), "{name}");
            assert!(read_tail(&bench.path("own").join(name), 100).is_err(), "{name}");
        }
    }

    #[test]
    fn read_file_over_limit_is_refused() {
        let bench = Bench::new();
        let path = bench.path("victim");
        assert_eq!(read(&path, 10).unwrap(), b"the user's");
        let error = read(&path, 9).unwrap_err().to_string();
        assert!(error.contains("longer than 9 bytes"), "{error}");
        // A sparse file costs its writer nothing.
        File::create(bench.path("own/sparse")).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&bench.path("own/sparse"), 1 << 10).is_err());
        assert_eq!(read_tail(&bench.path("own/sparse"), 1 << 10).unwrap().len(), 1 << 10);
        assert_eq!(read_tail(&path, 6).unwrap(), b"user's");
        assert_eq!(read_tail(&path, 600).unwrap(), b"the user's");
    }

    #[test]
    fn remove_link_leaves_its_target() {
        let bench = Bench::new();
        symlink(bench.path("victim"), bench.path("own/link")).unwrap();
        fs::create_dir(bench.path("own/directory")).unwrap();
        symlink(bench.dir.path(), bench.path("own/directory/link")).unwrap();
        for name in ["link", "directory", "nothing"] {
            remove(&bench.path("own").join(name)).unwrap();
        }
        assert_eq!(fs::read_dir(bench.path("own")).unwrap().count(), 0);
        symlink(bench.dir.path(), bench.path("own/link")).unwrap();
        assert!(remove_in(&bench.path("own/link"), "victim").is_err());
        remove_in(&bench.path("own"), "nothing").unwrap();
        remove_in(&bench.path("nothing"), "nothing").unwrap();
        assert!(bench.victim_is_whole());
    }

    #[test]
    fn take_moves_regular_files_only() {
        let bench = Bench::new();
        fs::create_dir(bench.path("to")).unwrap();
        let names = [("base", Presence::Optional), ("memory", Presence::Required), ("state", Presence::Required)];
        fs::write(bench.path("own/memory"), "m").unwrap();
        symlink(bench.path("victim"), bench.path("own/state")).unwrap();
        let error = take(&bench.path("own"), &bench.path("to"), &names).unwrap_err().to_string();
        assert!(error.contains("\"state\""), "{error}");
        assert!(!bench.path("to/state").exists() && bench.victim_is_whole());

        fs::write(bench.path("own/memory"), "m").unwrap();
        assert!(take(&bench.path("own"), &bench.path("to"), &names).is_err(), "there is no state");
        for name in ["memory", "state", "base"] {
            fs::write(bench.path("own").join(name), name).unwrap();
        }
        take(&bench.path("own"), &bench.path("to"), &names).unwrap();
        assert_eq!(fs::read_to_string(bench.path("to/base")).unwrap(), "base");

        // A link that the VMM put at a directory's name is not followed.
        symlink(bench.path("to"), bench.path("own/elsewhere")).unwrap();
        fs::create_dir(bench.path("other")).unwrap();
        assert!(take(&bench.path("own/elsewhere"), &bench.path("other"), &names).is_err());
    }

    #[test]
    fn connect_long_path_reaches_socket_and_link_is_refused() {
        let bench = Bench::new();
        let long = bench.path(&"d".repeat(120));
        fs::create_dir(&long).unwrap();
        let listener = UnixListener::bind(bench.path("own/socket")).unwrap();
        fs::rename(bench.path("own/socket"), long.join("socket")).unwrap();
        connect(&long.join("socket")).unwrap();
        listener.accept().unwrap();
        symlink(long.join("socket"), bench.path("own/socket")).unwrap();
        assert!(connect(&bench.path("own/socket")).is_err());
        assert!(connect(&bench.path("victim")).is_err());
        assert_eq!(connect(&bench.path("nothing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
