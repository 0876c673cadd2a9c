//! Sends and receives files and directories as a stream of entries.
//!
//! [`send`] walks a tree and emits its [`TreeEntry`]s. A [`TreeWriter`] writes the tree that they describe.
//! Copies from and to a guest follow the same rules:
//!
//! - Kept: names, contents, holes, permission bits, modification times of files and directories, symbolic links.
//! - Not kept: owners, set-user-id and set-group-id bits (their meaning depends on the owner), hard links, extended
//!   attributes.
//! - Sockets, devices and pipes inside a tree are skipped and counted.
//! - An existing directory keeps its mode: a copy of `etc` does not change the mode of the system's `/etc`.
//! - A file gets its name only when it is complete. The writer never replaces or opens a device, a pipe or a socket.
//! - A name in the stream is one component: never empty, `.`, `..` or with a slash. The writer opens each directory
//!   by its parent's descriptor and follows no link, so a stream cannot leave the destination.
//!
//! The guest trusts the host, but the host does not trust the guest. A writer with a [`CopyRequest`] takes the copy's
//! name from the request, not from the stream. It applies the umask and marks the links that it creates. Later copies
//! refuse marked links, even in the user's own path ([`Links::RefuseMarked`]).

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
pub use receive::{CopyRequest, TreeWriter};
pub use send::send;

/// Maximum nesting of directories, including the copied one. Each level holds a descriptor open.
pub const MAX_DEPTH: usize = 128;

/// One step of a walk through a tree, parents before children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeEntry<'a> {
    /// The entries up to the matching [`TreeEntry::EndOfDirectory`] are inside it.
    Directory {
        name: OsString,
        attributes: Attributes,
    },
    EndOfDirectory,
    File {
        name: OsString,
        attributes: Attributes,
    },
    #[serde(borrow)]
    Data(Bytes<'a>),
    EndOfFile,
    Symlink {
        name: OsString,
        target: OsString,
    },
    /// A socket, device or pipe, which is not copied.
    Skipped {
        name: OsString,
    },
    End,
    /// A hole of this length in bytes, never 0. Sent only after both ends agreed on [`Holes::Keep`].
    Hole(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// Send holes as zero bytes, for a peer without support for [`TreeEntry::Hole`].
    Fill,
    Keep,
}

/// Suffix of an agent's version that announces [`TreeEntry::Hole`]. Older agents lack it.
pub const HOLES_FEATURE: &str = "+holes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub mode: u32,
    /// Modification time in seconds since 1970.
    pub modified: i64,
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub skipped: u64,
    /// Bytes in files, including holes.
    pub bytes: u64,
}

#[derive(Debug, Error)]
pub enum TreeError {
    #[error("{}: cannot {action}: {}", path.display(), sentence(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is {kind}: only regular files and directories can be the target of a copy", path.display())]
    Special { path: PathBuf, kind: SpecialFile },
    #[error("{} is a symbolic link: wisp does not follow links inside the destination", .0.display())]
    LinkInTree(PathBuf),
    #[error(
        "{} is a symbolic link that was copied from a guest, so wisp does not follow it. \
         Specify the path of its target, or create the link yourself",
        .0.display()
    )]
    MarkedLink(PathBuf),
    #[error(
        "{} is a directory, but the source path does not end in a name that the copy could take. \
         Specify the full destination path, such as {}",
        .0.display(), .0.join("NAME").display()
    )]
    NameNeeded(PathBuf),
    #[error("{} is neither a regular file nor a directory", .0.display())]
    NotCopyable(PathBuf),
    /// The path has no last component to use as a name, such as `/`.
    #[error("{} has no name to use for the copy", .0.display())]
    NoName(PathBuf),
    #[error("{} is nested more than {MAX_DEPTH} directories deep", .0.display())]
    TooDeep(PathBuf),
    #[error("invalid file name {0:?} in the copied tree")]
    BadName(OsString),
    #[error("malformed copy stream: {0}")]
    OutOfOrder(&'static str),
    #[error(transparent)]
    Stream(#[from] ProtocolError),
    /// Error message from the other end.
    #[error("{0}")]
    OtherEnd(String),
}

impl TreeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { action, path: path.to_owned(), source: errno.into() }
    }
}

/// Kinds of files that a copy never writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialFile {
    Device,
    Pipe,
    Socket,
    /// A file that is reachable only through `/proc/PID/fd`.
    Descriptor,
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
