//! The receiving end: writes the entries of a stream to a destination.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{Attributes, Entry, MAX_DEPTH, Summary, TreeError, is_single_name};

/// Writes one tree. Dropped before [`Entry::End`], it leaves whole files, but never half of one.
#[derive(Debug)]
pub struct TreeWriter {
    destination: PathBuf,
    /// The directory the tree's root goes into: known from the first entry on.
    root: Option<OwnedFd>,
    directories: Vec<OpenDirectory>,
    file: Option<OpenFile>,
    summary: Summary,
    ended: bool,
}

#[derive(Debug)]
struct OpenDirectory {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
    /// What it gets once its children are written; `None` for one that was there before.
    attributes: Option<Attributes>,
}

/// A file under its temporary name, which it loses with the value.
#[derive(Debug)]
struct OpenFile {
    fd: OwnedFd,
    parent: OwnedFd,
    temporary: OsString,
    name: OsString,
    path: PathBuf,
    attributes: Attributes,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // After a rename there is nothing under this name, and nothing to do.
        let _ = rustix::fs::unlinkat(&self.parent, self.temporary.as_os_str(), AtFlags::empty());
    }
}

impl TreeWriter {
    /// A writer to `destination`: an existing directory takes the tree inside it, under the tree's own
    /// name; anything else becomes the tree's root itself, replaced where it is a file.
    #[must_use]
    pub fn new(destination: &Path) -> Self {
        Self {
            destination: destination.to_owned(),
            root: None,
            directories: Vec::new(),
            file: None,
            summary: Summary::default(),
            ended: false,
        }
    }

    /// What has been written so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Whether the tree is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// What the file system refused, or what is wrong with the entry. The tree cannot go on after it.
    pub fn accept(&mut self, entry: Entry<'_>) -> Result<(), TreeError> {
        if self.ended {
            return Err(TreeError::OutOfOrder("an entry after the end"));
        }
        if self.file.is_some() && !matches!(entry, Entry::Data(_) | Entry::EndOfFile) {
            return Err(TreeError::OutOfOrder("an entry within a file"));
        }
        match entry {
            Entry::Directory { name, attributes } => self.begin_directory(&name, attributes),
            Entry::EndOfDirectory => self.end_directory(),
            Entry::File { name, attributes } => self.begin_file(&name, attributes),
            Entry::Data(data) => self.write(data.0),
            Entry::EndOfFile => self.end_file(),
            Entry::Symlink { name, target } => self.symlink(&name, &target),
            Entry::Skipped { name } => {
                self.place(&name, false)?;
                self.summary.skipped += 1;
                Ok(())
            }
            Entry::End if self.directories.is_empty() && self.root.is_some() => {
                self.ended = true;
                Ok(())
            }
            Entry::End => Err(TreeError::OutOfOrder("the end within a directory, or of nothing")),
        }
    }

    /// The directory that takes the entry `name`, the name it gets there, and its path for messages.
    fn place(&mut self, name: &OsStr, is_directory: bool) -> Result<(BorrowedFd<'_>, OsString, PathBuf), TreeError> {
        if !is_single_name(name) {
            return Err(TreeError::BadName(name.to_owned()));
        }
        if self.root.is_none() {
            let (fd, name, path) = self.place_root(name, is_directory)?;
            let root: &OwnedFd = self.root.insert(fd);
            return Ok((root.as_fd(), name, path));
        }
        match self.directories.last() {
            Some(parent) => Ok((parent.fd.as_fd(), name.to_owned(), parent.path.join(name))),
            None => Err(TreeError::OutOfOrder("a second root")),
        }
    }

    fn place_root(&self, name: &OsStr, is_directory: bool) -> Result<(OwnedFd, OsString, PathBuf), TreeError> {
        let destination = self.destination.as_path();
        match rustix::fs::stat(destination) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Ok((open_directory(destination)?, name.to_owned(), destination.join(name)));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(TreeError::io("write", destination)(errno)),
        }
        if !is_directory && destination.as_os_str().as_bytes().ends_with(b"/") {
            return Err(TreeError::io("write", destination)(Errno::NOTDIR));
        }
        let name = destination.file_name().ok_or_else(|| TreeError::NoName(destination.to_owned()))?;
        let parent = match destination.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        Ok((open_directory(parent)?, name.to_owned(), destination.to_owned()))
    }

    fn begin_directory(&mut self, name: &OsStr, attributes: Attributes) -> Result<(), TreeError> {
        if self.directories.len() == MAX_DEPTH {
            return Err(TreeError::TooDeep(self.destination.join(name)));
        }
        let (parent, name, path) = self.place(name, true)?;
        let created = match rustix::fs::mkdirat(parent, name.as_os_str(), Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(TreeError::io("create", &path)(errno)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(parent, name.as_os_str(), flags, Mode::empty()).map_err(TreeError::io("open", &path))?;
        self.directories.push(OpenDirectory { fd, path, attributes: created.then_some(attributes) });
        Ok(())
    }

    fn end_directory(&mut self) -> Result<(), TreeError> {
        let directory = self.directories.pop().ok_or(TreeError::OutOfOrder("the end of no directory"))?;
        if let Some(attributes) = directory.attributes {
            // The sticky bit means something on a directory; set-group-id hangs on the owner.
            apply(directory.fd.as_fd(), attributes, 0o1777, &directory.path)?;
        }
        self.summary.directories += 1;
        Ok(())
    }

    fn begin_file(&mut self, name: &OsStr, attributes: Attributes) -> Result<(), TreeError> {
        let (parent, name, path) = self.place(name, false)?;
        let temporary = temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, temporary.as_os_str(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(TreeError::io("create", &path))?;
        let parent = parent.try_clone_to_owned().map_err(|source| TreeError::Io {
            action: "create",
            path: path.clone(),
            source,
        })?;
        self.file = Some(OpenFile { fd, parent, temporary, name, path, attributes });
        Ok(())
    }

    fn write(&mut self, mut data: &[u8]) -> Result<(), TreeError> {
        let file = self.file.as_ref().ok_or(TreeError::OutOfOrder("data outside a file"))?;
        self.summary.bytes += data.len() as u64;
        while !data.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::write(&file.fd, data))
                .map_err(TreeError::io("write", &file.path))?;
            data = &data[count..];
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), TreeError> {
        let file = self.file.take().ok_or(TreeError::OutOfOrder("the end of no file"))?;
        apply(file.fd.as_fd(), file.attributes, 0o777, &file.path)?;
        let (from, to) = (file.temporary.as_os_str(), file.name.as_os_str());
        rustix::fs::renameat(&file.parent, from, &file.parent, to).map_err(TreeError::io("write", &file.path))?;
        self.summary.files += 1;
        Ok(())
    }

    fn symlink(&mut self, name: &OsStr, target: &OsStr) -> Result<(), TreeError> {
        let (parent, name, path) = self.place(name, false)?;
        match rustix::fs::symlinkat(target, parent, name.as_os_str()) {
            Err(Errno::EXIST) => {
                let temporary = temporary_name();
                rustix::fs::symlinkat(target, parent, temporary.as_os_str()).map_err(TreeError::io("create", &path))?;
                let replaced = rustix::fs::renameat(parent, temporary.as_os_str(), parent, name.as_os_str());
                if replaced.is_err() {
                    let _ = rustix::fs::unlinkat(parent, temporary.as_os_str(), AtFlags::empty());
                }
                replaced.map_err(TreeError::io("replace", &path))?;
            }
            other => other.map_err(TreeError::io("create", &path))?,
        }
        self.summary.symlinks += 1;
        Ok(())
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, TreeError> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(TreeError::io("open", path))
}

/// A name that no other writer of this process uses; O_EXCL finds out about other processes.
fn temporary_name() -> OsString {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    format!(".wisp-{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

fn apply(fd: BorrowedFd<'_>, attributes: Attributes, mask: u32, path: &Path) -> Result<(), TreeError> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode & mask))
        .map_err(TreeError::io("set the mode of", path))?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: attributes.modified, tv_nsec: attributes.nanoseconds.into() },
    };
    rustix::fs::futimens(fd, &times).map_err(TreeError::io("set the time of", path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Bytes;
    use crate::tree::send;

    const PLAIN: Attributes = Attributes { mode: 0o644, modified: 1_000_000_000, nanoseconds: 5 };

    fn file(name: &str) -> Entry<'_> {
        Entry::File { name: name.into(), attributes: PLAIN }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        for name in ["..", ".", "", "a/b", "/etc", "../x"] {
            let error = TreeWriter::new(home.path()).accept(file(name)).expect_err(name);
            assert!(matches!(error, TreeError::BadName(_)), "{name:?}: {error}");
        }
    }

    #[test]
    fn a_link_in_the_destination_is_not_followed() {
        let home = tempfile::tempdir().expect("a directory");
        let outside = tempfile::tempdir().expect("another");
        std::os::unix::fs::symlink(outside.path(), home.path().join("d")).expect("a link");
        let mut writer = TreeWriter::new(home.path());
        let error = writer.accept(Entry::Directory { name: "d".into(), attributes: PLAIN }).expect_err("a link");
        assert!(matches!(error, TreeError::Io { .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_not_completed_leaves_nothing() {
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(home.path());
        writer.accept(file("f")).expect("begun");
        writer.accept(Entry::Data(Bytes(b"half"))).expect("written");
        drop(writer);
        assert_eq!(std::fs::read_dir(home.path()).expect("listed").count(), 0);
    }

    #[test]
    fn set_user_id_is_not_carried_over() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(home.path());
        let attributes = Attributes { mode: 0o4755, ..PLAIN };
        writer.accept(Entry::File { name: "f".into(), attributes }).expect("begun");
        writer.accept(Entry::EndOfFile).expect("ended");
        let mode = std::fs::metadata(home.path().join("f")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn a_file_named_with_a_slash_at_its_end_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(&home.path().join("no-such/"));
        assert!(writer.accept(file("f")).is_err());
    }

    #[test]
    fn an_error_names_its_path_and_the_systems_words() {
        let error = send(Path::new("/no/such/file"), &mut |_| Ok(())).expect_err("not there");
        assert_eq!(error.to_string(), "/no/such/file: cannot read: No such file or directory");
    }

    proptest! {
        #[test]
        fn entries_in_any_order_never_panic(steps in proptest::collection::vec((0u8..8, 0usize..4), 0..40)) {
            let home = tempfile::tempdir().expect("a directory");
            let mut writer = TreeWriter::new(home.path());
            for (kind, name) in steps {
                let name = OsString::from(["a", "b", "c", ".."][name]);
                let _ = writer.accept(match kind {
                    0 => Entry::Directory { name, attributes: PLAIN },
                    1 => Entry::EndOfDirectory,
                    2 => Entry::File { name, attributes: PLAIN },
                    3 => Entry::Data(Bytes(b"x")),
                    4 => Entry::EndOfFile,
                    5 => Entry::Symlink { name, target: "a".into() },
                    6 => Entry::Skipped { name },
                    _ => Entry::End,
                });
            }
        }
    }
}
