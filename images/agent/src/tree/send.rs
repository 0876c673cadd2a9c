//! Walks a file or a directory and emits its entries.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::path::{self, Destination, Links, Name};
use super::{Attributes, Holes, MAX_DEPTH, TreeEntry, TreeError};
use crate::protocol::{Bytes, MAX_DATA};

/// Passes the entries of the file or directory at `source` to `emit`, [`TreeEntry::End`] last. `links` applies to the path
/// `source`; links inside a directory are sent as links. Stops at the first error.
pub fn send(
    source: &Path,
    links: Links,
    holes: Holes,
    emit: &mut dyn FnMut(TreeEntry<'_>) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let place = path::resolve(source, links).map_err(|error| match error {
        TreeError::Io { source: error, .. } => TreeError::Io { action: "read", path: source.to_owned(), source: error },
        TreeError::Special { .. } => TreeError::NotCopyable(source.to_owned()),
        other => other,
    })?;
    let name = own_name(source)?;
    let mut walk = Walk { emit, path: source.to_owned(), depth: 0, holes, buffer: Vec::new() };
    match place {
        Destination::Directory(fd) => {
            let fd = walk.open(fd.as_fd(), OsStr::new("."), OFlags::DIRECTORY)?;
            walk.directory(fd, name)?;
        }
        Destination::Name(Name { exists: false, .. }) => return Err(TreeError::io("read", source)(Errno::NOENT)),
        Destination::Name(Name { parent, name: at, .. }) => walk.file(parent.as_fd(), &at, name, OFlags::NOFOLLOW)?,
        // Opening the `/proc` link again opens the same file for reading.
        Destination::Descriptor(fd) => {
            let at = OsString::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            walk.file(CWD, &at, name, OFlags::empty())?;
        }
    }
    (walk.emit)(TreeEntry::End)
}

/// Returns the name to send for `source`. Resolves `.` and `..` first.
fn own_name(source: &Path) -> Result<OsString, TreeError> {
    if let Some(name) = source.file_name()
        && !source.as_os_str().as_bytes().ends_with(b"/.")
    {
        return Ok(name.to_owned());
    }
    let real = std::fs::canonicalize(source).map_err(|error| TreeError::Io {
        action: "read",
        path: source.to_owned(),
        source: error,
    })?;
    real.file_name().map(OsStr::to_owned).ok_or(TreeError::NoName(real))
}

struct Walk<'a> {
    emit: &'a mut dyn FnMut(TreeEntry<'_>) -> Result<(), TreeError>,
    /// Current path, for messages.
    path: PathBuf,
    depth: usize,
    holes: Holes,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn open(&self, parent: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd, TreeError> {
        // `NONBLOCK`: a pipe that replaced the file meanwhile must not block the walk.
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(TreeError::io("open", &self.path))
    }

    fn directory(&mut self, fd: OwnedFd, name: OsString) -> Result<(), TreeError> {
        if self.depth == MAX_DEPTH {
            return Err(TreeError::TooDeep(self.path.clone()));
        }
        self.depth += 1;
        let stat = rustix::fs::fstat(&fd).map_err(TreeError::io("read", &self.path))?;
        (self.emit)(TreeEntry::Directory { name, attributes: Attributes::of(&stat) })?;
        let mut listing = Dir::read_from(&fd).map_err(TreeError::io("read", &self.path))?;
        while let Some(entry) = listing.read() {
            let entry = entry.map_err(TreeError::io("read", &self.path))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.path.push(name);
                self.child(fd.as_fd(), name)?;
                self.path.pop();
            }
        }
        self.depth -= 1;
        (self.emit)(TreeEntry::EndOfDirectory)
    }

    fn child(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), TreeError> {
        let stat =
            rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(TreeError::io("read", &self.path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(parent, name, name.to_owned(), OFlags::NOFOLLOW),
            FileType::Directory => {
                let fd = self.open(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
                self.directory(fd, name.to_owned())
            }
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(parent, name, Vec::new()).map_err(TreeError::io("read", &self.path))?;
                (self.emit)(TreeEntry::Symlink {
                    name: name.to_owned(),
                    target: OsString::from_vec(target.into_bytes()),
                })
            }
            _ => (self.emit)(TreeEntry::Skipped { name: name.to_owned() }),
        }
    }

    fn file(&mut self, parent: BorrowedFd<'_>, at: &OsStr, name: OsString, flags: OFlags) -> Result<(), TreeError> {
        let fd = self.open(parent, at, flags)?;
        let stat = rustix::fs::fstat(&fd).map_err(TreeError::io("read", &self.path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(TreeError::NotCopyable(self.path.clone()));
        }
        (self.emit)(TreeEntry::File { name, attributes: Attributes::of(&stat) })?;
        if self.holes == Holes::Keep && is_sparse(&stat) {
            self.sparse_data(&fd)?;
        } else {
            self.data(&fd, u64::MAX)?;
        }
        (self.emit)(TreeEntry::EndOfFile)
    }

    /// Sends up to `limit` bytes from the current position. Returns the number of bytes sent.
    fn data(&mut self, fd: &OwnedFd, limit: u64) -> Result<u64, TreeError> {
        self.buffer.resize(MAX_DATA, 0);
        let mut sent = 0;
        while sent < limit {
            let wanted = usize::try_from(limit - sent).map_or(MAX_DATA, |left| left.min(MAX_DATA));
            let count = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut self.buffer[..wanted]))
                .map_err(TreeError::io("read", &self.path))?;
            if count == 0 {
                break;
            }
            (self.emit)(TreeEntry::Data(Bytes(&self.buffer[..count])))?;
            sent += count as u64;
        }
        Ok(sent)
    }

    /// Sends the file's data, and its holes as holes.
    fn sparse_data(&mut self, fd: &OwnedFd) -> Result<(), TreeError> {
        let mut position = 0;
        loop {
            let data = match rustix::fs::seek(fd, SeekFrom::Data(position)) {
                Ok(data) => data.max(position),
                Err(Errno::NXIO) => {
                    let stat = rustix::fs::fstat(fd).map_err(TreeError::io("read", &self.path))?;
                    return self.hole(position, u64::try_from(stat.st_size).unwrap_or(0));
                }
                // The file system does not support `SEEK_DATA`: treat the rest as data.
                Err(_) => position,
            };
            self.hole(position, data)?;
            let end = rustix::fs::seek(fd, SeekFrom::Hole(data)).ok().filter(|end| *end > data);
            rustix::fs::seek(fd, SeekFrom::Start(data)).map_err(TreeError::io("read", &self.path))?;
            let limit = end.map_or(u64::MAX, |end| end - data);
            let sent = self.data(fd, limit)?;
            if sent < limit {
                return Ok(());
            }
            position = data + sent;
        }
    }

    fn hole(&mut self, from: u64, to: u64) -> Result<(), TreeError> {
        if to > from { (self.emit)(TreeEntry::Hole(to - from)) } else { Ok(()) }
    }
}

/// Returns true if a file may have holes. Others are not queried: file systems such as `/proc` may report wrong holes.
fn is_sparse(stat: &Stat) -> bool {
    stat.st_blocks.saturating_mul(512) < stat.st_size
}
