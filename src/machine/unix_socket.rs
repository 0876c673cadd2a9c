//! Unix sockets at paths of any length.
//!
//! A socket address holds a path of at most 107 bytes (unix(7)), and the path of a data directory can be longer. For a
//! long path, a listener binds to `/proc/self/fd/N/NAME`, where `N` is a descriptor of the directory. A client connects
//! through a descriptor of the socket itself. Changing the working directory instead would affect other
//! threads. `/proc/self` exists even in the VMM's sandbox.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// In bytes, excluding the terminating NUL.
const LONGEST_PATH: usize = 107;

/// A path that fits into a socket address, valid while this value exists.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl SocketPath {
    /// Returns a path that fits into an address. Fails if the directory cannot be opened, or the name alone is too
    /// long.
    pub fn of(path: &Path) -> io::Result<SocketPath> {
        if fits(path) {
            return Ok(SocketPath { path: path.to_path_buf(), _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory)?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        if !fits(&short) {
            let reason = format!("the name {name:?} is too long for a socket: the maximum is about 80 bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, reason));
        }
        Ok(SocketPath { path: short, _directory: Some(directory) })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

fn fits(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() <= LONGEST_PATH
}

pub fn bind(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(SocketPath::of(path)?)
}

/// Connects to a socket. Does not follow a symbolic link in the last component of `path`, because a VMM can write to
/// the directory of its sockets.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    if !socket.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not a socket"));
    }
    // Connects to the checked file, even if another file has replaced it at the path.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Returns a path of more than 200 bytes with spaces and non-ASCII letters.
    fn long_directory(parent: &Path) -> PathBuf {
        let directory = parent.join("wisp data ünïcödé ".repeat(6).trim()).join("folder with spaces ".repeat(4).trim());
        fs::create_dir_all(&directory).unwrap();
        assert!(directory.as_os_str().len() > 200);
        directory
    }

    #[test]
    fn socket_at_long_path_is_bound_at_its_name_and_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = long_directory(dir.path()).join("control.sock");
        let listener = bind(&path).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
        let _client = connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn short_path_is_unchanged() {
        let path = Path::new("/run/some where/ö.sock");
        assert_eq!(SocketPath::of(path).unwrap().as_ref(), path);
    }

    #[test]
    fn missing_long_path_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let directory = long_directory(dir.path());
        assert_eq!(connect(&directory.join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(bind(&directory.join("absent/socket")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let error = bind(&directory.join("x".repeat(120))).unwrap_err();
        assert!(error.to_string().contains("too long for a socket"), "{error}");
    }
}
