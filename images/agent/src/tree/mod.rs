//! Files and directories as a stream of entries.
//!
//! [`send`] walks a file or a directory and emits its [`Entry`]s. A [`TreeWriter`] takes the entries and writes the
//! tree elsewhere. Each end of a connection can send and receive, so copies in both directions follow the same rules:
//!
//! - Kept: names, contents, holes, permission bits, modification times of files and directories, symbolic
//!   links as such. Not kept: owners (the writing process owns the copy), set-user-id and set-group-id
//!   bits (their meaning depends on the owner), hard links, extended attributes.
//! - Sockets, devices and pipes inside a tree are skipped and counted.
//! - An existing directory is added to and keeps its own mode: copying an `etc` into a system does not
//!   change the mode of the system's `/etc`.
//! - A file appears under its name only when it is complete. The writer never replaces a device, a pipe or a
//!   socket, and never writes to one.
//! - A name in the stream is one component: never empty, `.`, `..` or with a slash. The writer opens
//!   each directory by its parent's descriptor and follows no link, so a stream cannot leave the
//!   destination.
//!
//! A guest trusts the host, but not the reverse. A writer with a [`Request`] takes the copy's own name from the
//! request, never from the stream. It applies the umask and marks the links that it creates. Later copies refuse
//! marked links, even in the user's own path ([`Links::RefuseMarked`]).

mod path;
mod receive;
mod send;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::protocol::{Bytes, ProtocolError};

pub use path::Links;
pub use receive::{Request, TreeWriter};
pub use send::send;

/// The greatest nesting of directories, including the copied one. Each level holds a descriptor open.
pub const MAX_DEPTH: usize = 128;

/// One step of a walk through a tree, parents before children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry<'a> {
    /// A directory. The following entries are inside it, until its [`Entry::EndOfDirectory`].
    Directory {
        /// The name within the parent.
        name: OsString,
        /// The mode and time.
        attributes: Attributes,
    },
    /// The end of the innermost directory.
    EndOfDirectory,
    /// A file. Its data follow, until [`Entry::EndOfFile`].
    File {
        /// The name within the parent.
        name: OsString,
        /// The mode and time.
        attributes: Attributes,
    },
    /// The next bytes of the file.
    #[serde(borrow)]
    Data(Bytes<'a>),
    /// The end of the file.
    EndOfFile,
    /// A symbolic link.
    Symlink {
        /// The name within the parent.
        name: OsString,
        /// The link's target, verbatim.
        target: OsString,
    },
    /// A socket, device or pipe, which is not copied.
    Skipped {
        /// The name within the parent.
        name: OsString,
    },
    /// The end of the tree.
    End,
    /// A hole of this many zero bytes, never 0. Sent only after both ends agreed on [`Holes::Keep`].
    Hole(u64),
}

/// Ways to send a file's holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// As zero bytes, to a peer without support for [`Entry::Hole`].
    Fill,
    /// As [`Entry::Hole`].
    Keep,
}

/// The feature in an agent's version for [`Entry::Hole`] and [`ToGuest::ReadSparse`].
///
/// Guests that were imported, hibernated or started earlier may run agents without it.
///
/// [`ToGuest::ReadSparse`]: crate::protocol::ToGuest::ReadSparse
pub const HOLES_FEATURE: &str = "+holes";

/// The copied attributes of a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The permission bits.
    pub mode: u32,
    /// The modification time, in seconds since 1970.
    pub modified: i64,
    /// The nanoseconds of the modification time.
    pub nanoseconds: u32,
}

impl Attributes {
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            modified: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        }
    }
}

/// Totals of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The number of files.
    pub files: u64,
    /// The number of directories.
    pub directories: u64,
    /// The number of symbolic links.
    pub symlinks: u64,
    /// The number of skipped sockets, devices and pipes.
    pub skipped: u64,
    /// The number of bytes in files, including holes.
    pub bytes: u64,
}

/// The reason that a tree could not be sent or written.
#[derive(Debug, Error)]
pub enum TreeError {
    /// A file system operation failed.
    #[error("{}: cannot {action}: {}", path.display(), sentence(source))]
    Io {
        /// The operation.
        action: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The destination of a file is a device, a pipe or a socket.
    #[error("{}: is {kind}; a copy writes only to files and directories", path.display())]
    Special {
        /// The file's path.
        path: PathBuf,
        /// The kind of file.
        kind: SpecialFile,
    },
    /// The destination of a directory is a symbolic link.
    #[error("{}: is a symbolic link; a copy does not follow links inside its destination", .0.display())]
    LinkInTree(PathBuf),
    /// The user's path contains a link that an untrusted stream created.
    #[error(
        "{}: is a symbolic link that was copied from a guest; wisp does not follow it. Give the path of its target, or create the link yourself",
        .0.display()
    )]
    MarkedLink(PathBuf),
    /// The source has no name, and the destination is an existing directory.
    #[error(
        "{}: is a directory, and the source has no name of its own to get inside it. Give the path of the new copy, as in {}",
        .0.display(), .0.join("NAME").display()
    )]
    NameNeeded(PathBuf),
    /// The source is neither a file nor a directory.
    #[error("{}: is neither a file nor a directory", .0.display())]
    NotCopyable(PathBuf),
    /// The path has no last component to use as a name, such as `/`.
    #[error("{}: has no name to copy it under", .0.display())]
    NoName(PathBuf),
    /// The tree is nested deeper than [`MAX_DEPTH`].
    #[error("{}: is nested deeper than {MAX_DEPTH} directories", .0.display())]
    TooDeep(PathBuf),
    /// A received name is not a single component.
    #[error("refused the name {0:?}: it is not the name of one file")]
    BadName(OsString),
    /// A received entry is out of order.
    #[error("malformed tree: {0}")]
    OutOfOrder(&'static str),
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] ProtocolError),
    /// The other end failed and sent this message.
    #[error("{0}")]
    OtherEnd(String),
}

impl TreeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { action, path: path.to_owned(), source: errno.into() }
    }
}

/// Kinds of files that a copy does not write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialFile {
    /// A character or block device.
    Device,
    /// A named or anonymous pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A file that is only reachable through a process's open descriptor (`/proc/PID/fd`).
    Descriptor,
    /// Any other file that is not regular.
    Other,
}

impl SpecialFile {
    fn of(kind: rustix::fs::FileType) -> Self {
        use rustix::fs::FileType;
        match kind {
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            FileType::Fifo => Self::Pipe,
            FileType::Socket => Self::Socket,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for SpecialFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Device => "a device",
            Self::Pipe => "a pipe",
            Self::Socket => "a socket",
            Self::Descriptor => "an open file of a process",
            Self::Other => "a special file",
        })
    }
}

/// Returns the system's message for an error, without Rust's "(os error 2)".
fn sentence(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// Returns true if `name` is one path component other than `.` and `..`.
fn is_single_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0)
}
