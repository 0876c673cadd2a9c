//! Files and directories as a stream of entries.
//!
//! [`send`] walks a file or a directory and hands out its [`Entry`]s; a [`TreeWriter`] takes them and
//! writes the tree elsewhere. Either end of a connection does either, so that copying into a guest and
//! out of it follow the same rules:
//!
//! - Kept: names, contents, holes, permission bits, modification times of files and directories, symbolic
//!   links as such. Not kept: owners (what is written belongs to the writing process), set-user-id
//!   and set-group-id bits (their meaning hangs on the owner), hard links, extended attributes.
//! - Sockets, devices and pipes inside a tree are passed over and counted.
//! - A directory that is there already is added to and keeps its own mode: copying an `etc` into a
//!   system does not change the system's `/etc` itself.
//! - A file appears under its name when all of it is written: never half of one. Nothing replaces a device, a pipe or a
//!   socket, and nothing is written to one.
//! - A name in the stream is one component: never empty, `.`, `..` or with a slash. The writer opens
//!   each directory by its parent's descriptor and follows no link, so that nothing in a stream leads
//!   out of the destination.
//!
//! A guest trusts the host, but not the reverse. A writer with a [`Request`] takes the copy's own name from the request and
//! never from the stream, applies the umask, and marks the links that it creates. A later copy does not follow marked links,
//! even where the user's path leads through one ([`Links::RefuseMarked`]).

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

/// How deep directories may be nested, the copied one included: each level holds a descriptor open.
pub const MAX_DEPTH: usize = 128;

/// One step of a walk through a tree, parents before children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry<'a> {
    /// A directory; what follows is inside it, until its [`Entry::EndOfDirectory`].
    Directory {
        /// Its name within its parent.
        name: OsString,
        /// Its mode and time.
        attributes: Attributes,
    },
    /// The innermost directory is complete.
    EndOfDirectory,
    /// A file; its data follow, until [`Entry::EndOfFile`].
    File {
        /// Its name within its parent.
        name: OsString,
        /// Its mode and time.
        attributes: Attributes,
    },
    /// The next bytes of the file.
    #[serde(borrow)]
    Data(Bytes<'a>),
    /// The file is complete.
    EndOfFile,
    /// A symbolic link.
    Symlink {
        /// Its name within its parent.
        name: OsString,
        /// What it points to, as it stands.
        target: OsString,
    },
    /// Something that is not copied: a socket, a device, a pipe.
    Skipped {
        /// Its name within its parent.
        name: OsString,
    },
    /// The tree is complete.
    End,
    /// The next so many bytes of the file are zero and take no space; never 0. Sent only where [`Holes::Keep`] was agreed.
    Hole(u64),
}

/// Ways to send a file's holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// As zero bytes: the other end knows no [`Entry::Hole`].
    Fill,
    /// As [`Entry::Hole`].
    Keep,
}

/// The part of an agent's version that says that it knows [`Entry::Hole`] and [`ToGuest::ReadSparse`].
///
/// Guests that were imported, hibernated or started earlier run agents that do not.
///
/// [`ToGuest::ReadSparse`]: crate::protocol::ToGuest::ReadSparse
pub const HOLES_FEATURE: &str = "+holes";

/// What is kept of a file or a directory besides its name and contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Modification time: seconds since 1970.
    pub modified: i64,
    /// And nanoseconds.
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

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Sockets, devices and pipes passed over.
    pub skipped: u64,
    /// Bytes in files, those in holes included.
    pub bytes: u64,
}

/// Why a tree could not be sent or written.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The file system refused.
    #[error("{}: cannot {action}: {}", path.display(), sentence(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device, a pipe or a socket is where a file was to be written.
    #[error("{}: is {kind}; a copy writes only to files and directories", path.display())]
    Special {
        /// Its path.
        path: PathBuf,
        /// Its kind.
        kind: SpecialFile,
    },
    /// A symbolic link stands where a directory was to be written.
    #[error("{}: is a symbolic link; a copy does not follow links inside its destination", .0.display())]
    LinkInTree(PathBuf),
    /// The user's path leads through a link that an untrusted stream created.
    #[error(
        "{}: is a symbolic link that was copied from a guest; wisp does not follow it. Give the path of its target, or create the link yourself",
        .0.display()
    )]
    MarkedLink(PathBuf),
    /// The source has no name, and the destination is a directory that exists.
    #[error(
        "{}: is a directory, and the source has no name of its own to get inside it. Give the path of the new copy, as in {}",
        .0.display(), .0.join("NAME").display()
    )]
    NameNeeded(PathBuf),
    /// It is neither a file nor a directory.
    #[error("{}: is neither a file nor a directory", .0.display())]
    NotCopyable(PathBuf),
    /// A path without a name of its own, such as `/`.
    #[error("{}: has no name to copy it under", .0.display())]
    NoName(PathBuf),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("{}: is nested deeper than {MAX_DEPTH} directories", .0.display())]
    TooDeep(PathBuf),
    /// A received name is not one component.
    #[error("refused the name {0:?}: it is not the name of one file")]
    BadName(OsString),
    /// A received entry does not belong where it stands.
    #[error("malformed tree: {0}")]
    OutOfOrder(&'static str),
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] ProtocolError),
    /// The other end failed, and says why.
    #[error("{0}")]
    OtherEnd(String),
}

impl TreeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { action, path: path.to_owned(), source: errno.into() }
    }
}

/// The kinds of files that are not copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialFile {
    /// A character or block device.
    Device,
    /// A named or anonymous pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A file that is reached only through a process's open descriptor (`/proc/PID/fd`).
    Descriptor,
    /// Anything else that is not a regular file.
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

/// The system's words for an error, without Rust's "(os error 2)".
fn sentence(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// Whether `name` is one path component that names a file of its own.
fn is_single_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0)
}
