//! Writes the entries of a stream to a destination.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::path::{self, Destination, Links, Name};
use super::{Attributes, MAX_DEPTH, SpecialFile, Summary, TreeEntry, TreeError, is_single_name};

/// Request to a sender that is not trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRequest {
    name: Option<OsString>,
    directory_only: bool,
    umask: u32,
}

impl CopyRequest {
    /// Creates a request for `source`. A copy into an existing directory gets the last component of `source` as its
    /// name. The paths `/`, `.`, `..` and the empty path give no name. Permissions in `umask` are not set.
    #[must_use]
    pub fn new(source: &OsStr, umask: u32) -> Self {
        let bytes = source.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let last = bytes[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = Some(OsStr::from_bytes(last)).filter(|name| is_single_name(name)).map(OsStr::to_owned);
        Self { directory_only: name.is_none() || end < bytes.len(), name, umask }
    }
}

/// Writes one tree. A writer dropped before [`TreeEntry::End`] leaves complete files, never partial ones.
#[derive(Debug)]
pub struct TreeWriter {
    destination: PathBuf,
    /// `None` if the sender is trusted.
    request: Option<CopyRequest>,
    /// Parent of the tree's root. `None` until the first entry.
    root: Option<OwnedFd>,
    directories: Vec<OpenDirectory>,
    file: Option<OpenFile>,
    summary: Summary,
    ended: bool,
}

#[derive(Debug)]
struct OpenDirectory {
    fd: OwnedFd,
    path: PathBuf,
    /// Attributes to set after the children are written. `None` for an existing directory.
    attributes: Option<Attributes>,
}

/// A file under a temporary name. Drop removes it unless it has its final name.
#[derive(Debug)]
struct OpenFile {
    fd: OwnedFd,
    parent: OwnedFd,
    temporary: OsString,
    name: OsString,
    path: PathBuf,
    attributes: Attributes,
    /// True if the name was in use when the file was created.
    replaces: bool,
    is_placed: bool,
    /// Length so far, including holes.
    length: u64,
    /// True if the last part is a hole, which the file includes only after a final `ftruncate`.
    ends_with_hole: bool,
}

impl OpenFile {
    fn write(&mut self, mut data: &[u8]) -> Result<(), TreeError> {
        self.length = self.length.saturating_add(data.len() as u64);
        self.ends_with_hole = false;
        while !data.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, data))
                .map_err(TreeError::io("write", &self.path))?;
            data = &data[count..];
        }
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Result<(), TreeError> {
        if length == 0 {
            return Err(TreeError::OutOfOrder("a hole of zero bytes"));
        }
        let end = self.length.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
        self.length = end.ok_or_else(|| TreeError::io("write", &self.path)(Errno::FBIG))?;
        self.ends_with_hole = true;
        rustix::fs::seek(&self.fd, SeekFrom::Start(self.length)).map_err(TreeError::io("write", &self.path))?;
        Ok(())
    }

    fn set_length(&self) -> Result<(), TreeError> {
        if !self.ends_with_hole {
            return Ok(());
        }
        rustix::fs::ftruncate(&self.fd, self.length).map_err(TreeError::io("write", &self.path))
    }

    fn place(&mut self) -> Result<(), TreeError> {
        let (from, to) = (self.temporary.as_os_str(), self.name.as_os_str());
        let failed = TreeError::io("write", &self.path);
        if !self.replaces {
            match rustix::fs::renameat_with(&self.parent, from, &self.parent, to, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    self.is_placed = true;
                    return Ok(());
                }
                // The name is in use by now, or the file system does not support `NOREPLACE`.
                Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        refuse_special(self.parent.as_fd(), to, &self.path)?;
        rustix::fs::renameat(&self.parent, from, &self.parent, to).map_err(failed)?;
        self.is_placed = true;
        Ok(())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.is_placed {
            return;
        }
        let _ = rustix::fs::unlinkat(&self.parent, self.temporary.as_os_str(), AtFlags::empty());
    }
}

impl TreeWriter {
    /// Creates a writer of a trusted stream. If `destination` is a directory, the tree is created inside it under its
    /// own name. Otherwise, the tree's root gets the path `destination` and replaces an existing file.
    #[must_use]
    pub fn new(destination: &Path) -> Self {
        Self::with(destination, None)
    }

    /// Like [`new`](Self::new), for an untrusted stream. Inside a directory, the tree gets the request's name.
    #[must_use]
    pub fn untrusted(destination: &Path, request: CopyRequest) -> Self {
        Self::with(destination, Some(request))
    }

    fn with(destination: &Path, request: Option<CopyRequest>) -> Self {
        Self {
            destination: destination.to_owned(),
            request,
            root: None,
            directories: Vec::new(),
            file: None,
            summary: Summary::default(),
            ended: false,
        }
    }

    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// Writes one entry. The writer cannot be used after an error.
    pub fn accept(&mut self, entry: TreeEntry<'_>) -> Result<(), TreeError> {
        if self.ended {
            return Err(TreeError::OutOfOrder("an entry after the end"));
        }
        if self.file.is_some() && !matches!(entry, TreeEntry::Data(_) | TreeEntry::Hole(_) | TreeEntry::EndOfFile) {
            return Err(TreeError::OutOfOrder("an entry within a file"));
        }
        match entry {
            TreeEntry::Directory { name, attributes } => self.begin_directory(&name, attributes),
            TreeEntry::EndOfDirectory => self.end_directory(),
            TreeEntry::File { name, attributes } => self.begin_file(&name, attributes),
            TreeEntry::Data(data) => self.write(data.0),
            TreeEntry::Hole(length) => self.skip(length),
            TreeEntry::EndOfFile => self.end_file(),
            TreeEntry::Symlink { name, target } => self.symlink(&name, &target),
            TreeEntry::Skipped { .. } if self.root.is_none() => {
                Err(TreeError::OutOfOrder("a special file instead of a file or directory"))
            }
            TreeEntry::Skipped { name } => {
                self.place(&name, false)?;
                self.summary.skipped += 1;
                Ok(())
            }
            TreeEntry::End if self.directories.is_empty() && self.root.is_some() => {
                self.ended = true;
                Ok(())
            }
            TreeEntry::End => Err(TreeError::OutOfOrder("the end inside a directory or before the first entry")),
        }
    }

    /// Returns the directory for the entry, the entry's name there, and its path for messages.
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

    /// Resolves the destination once. Later entries use the descriptor.
    fn place_root(&self, sent: &OsStr, is_directory: bool) -> Result<(OwnedFd, OsString, PathBuf), TreeError> {
        let destination = self.destination.as_path();
        let (links, name) = match &self.request {
            None => (Links::Follow, Some(sent)),
            Some(request) if request.directory_only && !is_directory => {
                return Err(TreeError::OutOfOrder("a file instead of a directory"));
            }
            Some(request) => (Links::RefuseMarked, request.name.as_deref()),
        };
        match path::resolve(destination, links)? {
            Destination::Directory(fd) => {
                let name = name.ok_or_else(|| TreeError::NameNeeded(destination.to_owned()))?;
                Ok((fd, name.to_owned(), destination.join(name)))
            }
            Destination::Name(Name { ends_with_slash: true, .. }) if !is_directory => {
                Err(TreeError::io("write", destination)(Errno::NOTDIR))
            }
            Destination::Name(Name { parent, name, .. }) => Ok((parent, name, destination.to_owned())),
            Destination::Descriptor(_) => {
                Err(TreeError::Special { path: destination.to_owned(), kind: SpecialFile::Descriptor })
            }
        }
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
        let fd = match rustix::fs::openat(parent, name.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(_) if kind_of(parent, &name) == Some(FileType::Symlink) => return Err(TreeError::LinkInTree(path)),
            Err(errno) => return Err(TreeError::io("open", &path)(errno)),
        };
        self.directories.push(OpenDirectory { fd, path, attributes: created.then_some(attributes) });
        Ok(())
    }

    fn end_directory(&mut self) -> Result<(), TreeError> {
        let directory = self.directories.pop().ok_or(TreeError::OutOfOrder("an end of directory without a start"))?;
        if let Some(attributes) = directory.attributes {
            // Keep the sticky bit, but not set-group-id, whose meaning depends on the owner.
            apply(directory.fd.as_fd(), attributes, self.mask(0o1777), &directory.path)?;
        }
        self.summary.directories += 1;
        Ok(())
    }

    fn begin_file(&mut self, name: &OsStr, attributes: Attributes) -> Result<(), TreeError> {
        let (parent, name, path) = self.place(name, false)?;
        // Fail before any data is sent. `OpenFile::place` checks again.
        let replaces = refuse_special(parent, &name, &path)?.is_some();
        let temporary = temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, temporary.as_os_str(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(TreeError::io("create", &path))?;
        let parent = parent.try_clone_to_owned().map_err(|source| TreeError::Io {
            action: "create",
            path: path.clone(),
            source,
        })?;
        self.file = Some(OpenFile {
            fd,
            parent,
            temporary,
            name,
            path,
            attributes,
            replaces,
            is_placed: false,
            length: 0,
            ends_with_hole: false,
        });
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), TreeError> {
        let file = self.file.as_mut().ok_or(TreeError::OutOfOrder("data outside a file"))?;
        self.summary.bytes = self.summary.bytes.saturating_add(data.len() as u64);
        file.write(data)
    }

    fn skip(&mut self, length: u64) -> Result<(), TreeError> {
        let file = self.file.as_mut().ok_or(TreeError::OutOfOrder("a hole outside a file"))?;
        self.summary.bytes = self.summary.bytes.saturating_add(length);
        file.skip(length)
    }

    fn end_file(&mut self) -> Result<(), TreeError> {
        let mut file = self.file.take().ok_or(TreeError::OutOfOrder("an end of file outside a file"))?;
        file.set_length()?;
        apply(file.fd.as_fd(), file.attributes, self.mask(0o777), &file.path)?;
        file.place()?;
        self.summary.files += 1;
        Ok(())
    }

    fn symlink(&mut self, name: &OsStr, target: &OsStr) -> Result<(), TreeError> {
        if self.root.is_none() {
            // A sender must follow a link that is itself the source.
            return Err(TreeError::OutOfOrder("a symbolic link instead of a file or directory"));
        }
        let is_untrusted = self.request.is_some();
        let (parent, name, path) = self.place(name, false)?;
        if !is_untrusted {
            match rustix::fs::symlinkat(target, parent, name.as_os_str()) {
                Err(Errno::EXIST) => {}
                other => {
                    other.map_err(TreeError::io("create", &path))?;
                    self.summary.symlinks += 1;
                    return Ok(());
                }
            }
        }
        refuse_special(parent, &name, &path)?;
        let temporary = temporary_name();
        rustix::fs::symlinkat(target, parent, temporary.as_os_str()).map_err(TreeError::io("create", &path))?;
        // The link must never have its final name without its mark.
        let marked = if is_untrusted { path::mark(parent, &temporary) } else { Ok(()) };
        let placed = marked.map_err(TreeError::io("set the time of", &path)).and_then(|()| {
            rustix::fs::renameat(parent, temporary.as_os_str(), parent, name.as_os_str())
                .map_err(TreeError::io("replace", &path))
        });
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(parent, temporary.as_os_str(), AtFlags::empty());
        }
        placed?;
        self.summary.symlinks += 1;
        Ok(())
    }

    fn mask(&self, possible: u32) -> u32 {
        possible & !self.request.as_ref().map_or(0, |request| request.umask)
    }
}

fn kind_of(parent: BorrowedFd<'_>, name: &OsStr) -> Option<FileType> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

/// Refuses to replace a device, a pipe or a socket. Returns the kind of any other existing file.
fn refuse_special(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<Option<FileType>, TreeError> {
    match kind_of(parent, name) {
        kind @ (None | Some(FileType::RegularFile | FileType::Directory | FileType::Symlink)) => Ok(kind),
        Some(kind) => Err(TreeError::Special { path: path.to_owned(), kind: SpecialFile::of(kind) }),
    }
}

/// Returns a name that is unique in this process. `O_EXCL` detects names of other processes.
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
    use crate::tree::{Holes, send};

    const PLAIN: Attributes = Attributes { mode: 0o644, modified: 1_000_000_000, nanoseconds: 5 };

    fn file(name: &str) -> TreeEntry<'_> {
        TreeEntry::File { name: name.into(), attributes: PLAIN }
    }

    #[test]
    fn names_other_than_one_component_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        for name in ["..", ".", "", "a/b", "/etc", "../x"] {
            let error = TreeWriter::new(home.path()).accept(file(name)).expect_err(name);
            assert!(matches!(error, TreeError::BadName(_)), "{name:?}: {error}");
        }
    }

    #[test]
    fn symlink_in_destination_is_not_followed() {
        let home = tempfile::tempdir().expect("a directory");
        let outside = tempfile::tempdir().expect("another");
        std::os::unix::fs::symlink(outside.path(), home.path().join("d")).expect("a link");
        let mut writer = TreeWriter::new(home.path());
        let error = writer.accept(TreeEntry::Directory { name: "d".into(), attributes: PLAIN }).expect_err("a link");
        assert!(matches!(error, TreeError::LinkInTree(_)), "{error}");
    }

    #[test]
    fn incomplete_file_is_removed() {
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(home.path());
        writer.accept(file("f")).expect("begun");
        writer.accept(TreeEntry::Data(Bytes(b"half"))).expect("written");
        drop(writer);
        assert_eq!(std::fs::read_dir(home.path()).expect("listed").count(), 0);
    }

    #[test]
    fn set_user_id_bit_is_not_copied() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(home.path());
        let attributes = Attributes { mode: 0o4755, ..PLAIN };
        writer.accept(TreeEntry::File { name: "f".into(), attributes }).expect("begun");
        writer.accept(TreeEntry::EndOfFile).expect("ended");
        let mode = std::fs::metadata(home.path().join("f")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn file_destination_with_trailing_slash_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(&home.path().join("no-such/"));
        assert!(writer.accept(file("f")).is_err());
    }

    #[test]
    fn error_names_path_and_system_message() {
        let error =
            send(Path::new("/no/such/file"), Links::Follow, Holes::Fill, &mut |_| Ok(())).expect_err("not there");
        assert_eq!(error.to_string(), "/no/such/file: cannot read: No such file or directory");
    }

    fn blocks_and_length(path: &Path) -> (i64, u64) {
        let stat = rustix::fs::stat(path).expect("there");
        (stat.st_blocks, stat.st_size.try_into().expect("positive"))
    }

    fn copy(from: &Path, to: &Path, holes: Holes) -> u64 {
        let mut writer = TreeWriter::new(to);
        let mut sent = 0;
        send(from, Links::Follow, holes, &mut |entry| {
            if let TreeEntry::Data(data) = &entry {
                sent += data.0.len() as u64;
            }
            assert!(holes == Holes::Keep || !matches!(entry, TreeEntry::Hole(_)), "the peer does not support holes");
            writer.accept(entry)
        })
        .expect("copied");
        assert!(writer.is_complete());
        sent
    }

    #[test]
    fn sparse_file_is_copied_without_hole_data() {
        use std::os::unix::fs::FileExt;
        const LENGTH: u64 = 1 << 30;
        let home = tempfile::tempdir().expect("a directory");
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        let file = std::fs::File::create(&from).expect("created");
        file.set_len(LENGTH).expect("set");
        for position in [0, 5_000_000, 512 << 20] {
            file.write_all_at(b"data", position).expect("written");
        }
        let sent = copy(&from, &to, Holes::Keep);
        assert!(sent <= 3 << 20, "{sent} bytes were sent");
        let (blocks, length) = blocks_and_length(&to);
        assert!(blocks <= 6 << 11 && length == LENGTH, "{blocks} blocks, {length} bytes");
        let copied = std::fs::File::open(&to).expect("opened");
        for position in [0, 5_000_000, 512 << 20] {
            let mut bytes = [1; 6];
            copied.read_exact_at(&mut bytes, position).expect("read");
            assert_eq!(&bytes, b"data\0\0");
        }
    }

    #[test]
    fn sparse_file_is_filled_for_peer_without_holes() {
        let home = tempfile::tempdir().expect("a directory");
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        std::fs::File::create(&from).and_then(|file| file.set_len(3 << 20)).expect("made");
        assert_eq!(copy(&from, &to, Holes::Fill), 3 << 20);
        assert_eq!(std::fs::read(&to).expect("read"), vec![0; 3 << 20]);
    }

    /// `/proc` reports a length of 0 and no holes.
    #[test]
    fn proc_file_is_copied_whole() {
        let home = tempfile::tempdir().expect("a directory");
        copy(Path::new("/proc/version"), &home.path().join("to"), Holes::Keep);
        let read = |path: &Path| std::fs::read(path).expect("read");
        assert_eq!(read(&home.path().join("to")), read(Path::new("/proc/version")));
    }

    #[test]
    fn invalid_hole_lengths_are_refused() {
        const LARGEST: u64 = i64::MAX as u64;
        for holes in [&[0][..], &[LARGEST + 1], &[u64::MAX], &[1, u64::MAX], &[LARGEST, 1]] {
            let home = tempfile::tempdir().expect("a directory");
            let mut writer = untrusted(home.path(), "f");
            writer.accept(file("f")).expect("begun");
            let outcome: Result<Vec<_>, _> = holes.iter().map(|hole| writer.accept(TreeEntry::Hole(*hole))).collect();
            assert!(outcome.is_err(), "{holes:?}");
            drop(writer);
            assert_eq!(std::fs::read_dir(home.path()).expect("listed").count(), 0);
        }
        let mut writer = untrusted(Path::new("/no/such"), "f");
        assert!(matches!(writer.accept(TreeEntry::Hole(1)), Err(TreeError::OutOfOrder(_))));
    }

    /// Creates one file of each special kind. The socket lives as long as its listener.
    fn specials(at: &Path) -> std::os::unix::net::UnixListener {
        rustix::fs::mkfifoat(rustix::fs::CWD, at.join("pipe"), 0o600.into()).expect("made");
        if rustix::process::geteuid().is_root() {
            // No driver has this device: a write would fail, and a replaced node would be visible.
            let device = rustix::fs::makedev(1, 200);
            let kind = FileType::CharacterDevice;
            let made = rustix::fs::mknodat(rustix::fs::CWD, at.join("device"), kind, 0o600.into(), device);
            // Some containers forbid this even to root.
            assert!(matches!(made, Ok(()) | Err(Errno::PERM)), "{made:?}");
        }
        std::os::unix::net::UnixListener::bind(at.join("socket")).expect("bound")
    }

    fn untrusted(destination: &Path, source: &str) -> TreeWriter {
        TreeWriter::untrusted(destination, CopyRequest::new(source.as_ref(), 0o022))
    }

    #[test]
    fn devices_pipes_and_sockets_are_not_replaced() {
        let home = tempfile::tempdir().expect("a directory");
        let _listener = specials(home.path());
        let present: Vec<_> =
            ["pipe", "device", "socket"].into_iter().filter(|name| home.path().join(name).exists()).collect();
        assert!(present.len() >= 2);
        let kind = |name: &str| kind_of(rustix::fs::CWD, home.path().join(name).as_os_str());
        let before: Vec<_> = present.iter().map(|name| kind(name)).collect();
        let refused = |mut writer: TreeWriter, entries: Vec<TreeEntry<'_>>, name: &str| {
            let error = entries.into_iter().find_map(|entry| writer.accept(entry).err()).expect(name);
            assert!(matches!(error, TreeError::Special { .. }), "{name}: {error}");
        };
        for name in &present {
            let path = home.path().join(name);
            std::os::unix::fs::symlink(name, home.path().join("own")).expect("linked");
            // As the destination, as a name in the destination, through a link, and inside a tree.
            refused(TreeWriter::new(&path), vec![file("f")], name);
            refused(untrusted(&path, "/f"), vec![file("f")], name);
            refused(TreeWriter::new(home.path()), vec![file(name)], name);
            refused(untrusted(home.path(), name), vec![file("f")], name);
            refused(TreeWriter::new(&home.path().join("own")), vec![file("f")], name);
            let tree = home.path().file_name().expect("a name").to_str().expect("text");
            let parent = home.path().parent().expect("a parent");
            let directory = || TreeEntry::Directory { name: tree.into(), attributes: PLAIN };
            let link = || TreeEntry::Symlink { name: (*name).into(), target: "x".into() };
            for entry in [file(name), link()] {
                refused(TreeWriter::new(parent), vec![directory(), entry.clone()], name);
                refused(untrusted(parent, tree), vec![directory(), entry], name);
            }
            std::fs::remove_file(home.path().join("own")).expect("removed");
        }
        assert_eq!(present.iter().map(|name| kind(name)).collect::<Vec<_>>(), before);
    }

    /// Another process creates a pipe with the file's name while the file's data arrives.
    #[test]
    fn pipe_created_during_copy_is_not_replaced() {
        let home = tempfile::tempdir().expect("a directory");
        let mut writer = TreeWriter::new(home.path());
        writer.accept(file("f")).expect("begun");
        rustix::fs::mkfifoat(rustix::fs::CWD, home.path().join("f"), 0o600.into()).expect("made");
        let error = writer.accept(TreeEntry::EndOfFile).expect_err("a pipe");
        assert!(matches!(error, TreeError::Special { kind: SpecialFile::Pipe, .. }), "{error}");
        drop(writer);
        assert_eq!(std::fs::read_dir(home.path()).expect("listed").count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn request_takes_name_from_source() {
        let name = |source: &str| {
            let request = CopyRequest::new(source.as_ref(), 0);
            (request.name.map(|name| name.into_string().expect("text")), request.directory_only)
        };
        assert_eq!(name("/etc/motd"), (Some("motd".into()), false));
        assert_eq!(name("motd"), (Some("motd".into()), false));
        assert_eq!(name("/srv/data//"), (Some("data".into()), true));
        for source in ["", "/", ".", "..", "/srv/.", "/srv/..", "/srv/./", "a/../"] {
            assert_eq!(name(source), (None, true), "{source}");
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Directory,
        EndOfDirectory,
        File,
        Data,
        EndOfFile,
        Hole,
        Symlink,
        Skipped,
        End,
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, &'static str)>> {
        use Step::{Data, Directory, End, EndOfDirectory, EndOfFile, File, Hole, Skipped, Symlink};
        let kind = prop::sample::select(vec![
            Directory,
            EndOfDirectory,
            File,
            Data,
            Hole,
            EndOfFile,
            Symlink,
            Skipped,
            End,
            Directory,
            File,
            EndOfFile,
            Symlink,
        ]);
        let name = prop::sample::select(vec!["data", "sub", "out", "out", ".bashrc", "..", "../outside", ""]);
        prop::collection::vec((kind, name), 0..40)
    }

    /// A destination, and the stream that is copied to it.
    fn copies() -> impl Strategy<Value = (&'static str, Vec<(Step, &'static str)>)> {
        let destination = prop::sample::select(vec![
            "home",
            "home/",
            "own",
            "home/new",
            "home/data/sub",
            "home/data/out",
            "home/data/out/",
            "home/data/out/x",
        ]);
        (destination, steps())
    }

    proptest! {
        /// Receives several streams in a row, because the links of one are in the path of the next.
        #[test]
        fn untrusted_stream_creates_only_requested_files(
            copies in prop::collection::vec(copies(), 1..8),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            for name in ["home/data/sub", "outside"] {
                std::fs::create_dir_all(dir.path().join(name)).expect("made");
            }
            std::fs::write(dir.path().join("home/.bashrc"), "mine").expect("written");
            std::os::unix::fs::symlink("home", dir.path().join("own")).expect("linked");
            std::os::unix::fs::symlink("../../outside", dir.path().join("home/data/away")).expect("linked");
            for (destination, stream) in copies {
                let mut writer = untrusted(&dir.path().join(destination), "/srv/data");
                for (step, name) in stream {
                    let name = OsString::from(name);
                    let entry = match step {
                        Step::Directory => TreeEntry::Directory { name, attributes: PLAIN },
                        Step::EndOfDirectory => TreeEntry::EndOfDirectory,
                        Step::File => TreeEntry::File { name, attributes: PLAIN },
                        Step::Data => TreeEntry::Data(Bytes(b"x")),
                        Step::Hole => TreeEntry::Hole(name.len() as u64 * 5000),
                        Step::EndOfFile => TreeEntry::EndOfFile,
                        Step::Symlink => TreeEntry::Symlink { name, target: dir.path().join("outside").into() },
                        Step::Skipped => TreeEntry::Skipped { name },
                        Step::End => TreeEntry::End,
                    };
                    let _ = writer.accept(entry);
                }
            }
            let names = |name: &str| -> std::collections::BTreeSet<String> {
                let entries = std::fs::read_dir(dir.path().join(name)).expect("listed");
                entries.map(|entry| entry.expect("read").file_name().into_string().expect("text")).collect()
            };
            let only = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            prop_assert_eq!(names("."), only(&["home", "outside", "own"]));
            prop_assert_eq!(names("outside"), only(&[]));
            prop_assert!(names("home").is_subset(&only(&[".bashrc", "data", "new"])));
            prop_assert_eq!(std::fs::read(dir.path().join("home/.bashrc")).expect("there"), b"mine");
        }

        #[test]
        fn files_with_holes_are_copied_unchanged(
            parts in prop::collection::vec((any::<bool>(), 1usize..200_000), 0..8),
            holes in prop::sample::select(vec![Holes::Keep, Holes::Fill]),
        ) {
            use std::os::unix::fs::FileExt;
            let home = tempfile::tempdir().expect("a directory");
            let (from, to) = (home.path().join("from"), home.path().join("to"));
            let file = std::fs::File::create(&from).expect("created");
            let mut length = 0;
            for (is_data, part) in parts {
                if is_data {
                    file.write_all_at(&vec![b'd'; part], length).expect("written");
                }
                length += part as u64;
            }
            file.set_len(length).expect("set");
            copy(&from, &to, holes);
            prop_assert_eq!(std::fs::read(&to).expect("read"), std::fs::read(&from).expect("read"));
        }

        #[test]
        fn entries_in_any_order_never_panic(steps in proptest::collection::vec((0u8..9, 0usize..4), 0..40)) {
            let home = tempfile::tempdir().expect("a directory");
            let mut writer = TreeWriter::new(home.path());
            for (kind, name) in steps {
                let name = OsString::from(["a", "b", "c", ".."][name]);
                let _ = writer.accept(match kind {
                    0 => TreeEntry::Directory { name, attributes: PLAIN },
                    1 => TreeEntry::EndOfDirectory,
                    2 => TreeEntry::File { name, attributes: PLAIN },
                    3 => TreeEntry::Data(Bytes(b"x")),
                    4 => TreeEntry::EndOfFile,
                    5 => TreeEntry::Symlink { name, target: "a".into() },
                    6 => TreeEntry::Skipped { name },
                    7 => TreeEntry::Hole(10_000),
                    _ => TreeEntry::End,
                });
            }
        }
    }
}
