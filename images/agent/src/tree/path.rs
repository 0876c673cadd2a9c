//! Resolves the path that the user specified for a copy, once, into descriptors.
//!
//! It follows the user's own symbolic links, but not those that an untrusted stream created: such a link could redirect
//! a later copy anywhere. [`mark`] gives those links a fixed modification time, which [`resolve`] recognizes.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{SpecialFile, TreeError};

/// Maximum number of symbolic links, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Modification time of links that an untrusted stream created: "WISP" in ASCII, 2016-05-28 08:14:08 UTC. An even
/// number of whole seconds survives file systems that store coarse times.
const MARK: i64 = 0x5749_5350;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    Follow,
    /// Follow the user's own links, but fail at those that an untrusted stream created.
    RefuseMarked,
}

#[derive(Debug)]
pub(super) enum Destination {
    /// Opened with `O_PATH`.
    Directory(OwnedFd),
    /// A regular file in an open directory, or a free name where a file or directory can be created.
    Name(Name),
    /// A file that is reachable only through a link in `/proc`, opened with `O_PATH`.
    Descriptor(OwnedFd),
}

#[derive(Debug)]
pub(super) struct Name {
    pub parent: OwnedFd,
    pub name: OsString,
    pub exists: bool,
    /// True if the path can only be a directory's.
    pub ends_with_slash: bool,
}

pub(super) fn mark(parent: BorrowedFd<'_>, link: &OsStr) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: MARK, tv_nsec: 0 },
    };
    rustix::fs::utimensat(parent, link, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn is_marked(link: &Stat) -> bool {
    link.st_mtime == MARK && link.st_mtime_nsec == 0
}

/// Follows `path` component by component. Errors name the component that cannot be followed.
pub(super) fn resolve(path: &Path, links: Links) -> Result<Destination, TreeError> {
    let mut walk = Walk { at: open(CWD, ".".as_ref(), path)?, shown: PathBuf::new(), rest: Vec::new(), followed: 0 };
    walk.push(path)?;
    while let Some(name) = walk.rest.pop() {
        if let Some(place) = walk.step(&name, links)? {
            return Ok(place);
        }
    }
    Ok(Destination::Directory(walk.at))
}

struct Walk {
    at: OwnedFd,
    /// Path of `at`, for messages.
    shown: PathBuf,
    /// Remaining components, in reverse order.
    rest: Vec<OsString>,
    followed: usize,
}

impl Walk {
    /// Puts the components of `path` before the remaining ones. An absolute path restarts at the root directory.
    fn push(&mut self, path: &Path) -> Result<(), TreeError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.starts_with(b"/") {
            self.shown = PathBuf::from("/");
            self.at = open(CWD, "/".as_ref(), &self.shown)?;
        }
        // A "." at the end represents a trailing slash: only a directory can precede it.
        let end = bytes.ends_with(b"/").then_some(&b"."[..]);
        let components = bytes.split(|byte| *byte == b'/').filter(|component| !component.is_empty());
        let components: Vec<&[u8]> = components.chain(end).collect();
        self.rest.extend(components.iter().rev().map(|component| OsString::from_vec(component.to_vec())));
        Ok(())
    }

    fn step(&mut self, name: &OsStr, links: Links) -> Result<Option<Destination>, TreeError> {
        if name == "." {
            return Ok(None);
        }
        let path = self.shown.join(name);
        if name == ".." {
            return self.enter(name, path);
        }
        let stat = match rustix::fs::statat(&self.at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if self.rest.iter().all(|name| name == ".") => {
                return Ok(Some(Destination::Name(self.name(name, false, &path)?)));
            }
            Err(errno) => return Err(TreeError::io("open", &path)(errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.enter(name, path),
            FileType::Symlink if links == Links::RefuseMarked && is_marked(&stat) => Err(TreeError::MarkedLink(path)),
            FileType::Symlink => self.follow(name, path),
            _ if !self.rest.is_empty() => Err(TreeError::io("open", &path)(Errno::NOTDIR)),
            FileType::RegularFile => Ok(Some(Destination::Name(self.name(name, true, &path)?))),
            kind => Err(TreeError::Special { path, kind: SpecialFile::of(kind) }),
        }
    }

    fn enter(&mut self, name: &OsStr, path: PathBuf) -> Result<Option<Destination>, TreeError> {
        self.at = open(self.at.as_fd(), name, &path)?;
        self.shown = path;
        Ok(None)
    }

    fn name(&self, name: &OsStr, exists: bool, path: &Path) -> Result<Name, TreeError> {
        let parent =
            self.at.try_clone().map_err(|source| TreeError::Io { action: "open", path: path.to_owned(), source })?;
        Ok(Name { parent, name: name.to_owned(), exists, ends_with_slash: !self.rest.is_empty() })
    }

    fn follow(&mut self, name: &OsStr, path: PathBuf) -> Result<Option<Destination>, TreeError> {
        self.followed += 1;
        if self.followed > MAX_LINKS {
            return Err(TreeError::io("open", &path)(Errno::LOOP));
        }
        if is_procfs(self.at.as_fd()) {
            return self.follow_descriptor(name, path);
        }
        let target = rustix::fs::readlinkat(&self.at, name, Vec::new()).map_err(TreeError::io("open", &path))?;
        self.push(Path::new(OsStr::from_bytes(target.as_bytes())))?;
        Ok(None)
    }

    /// Follows a link of `/proc`. The link's text need not be a path, so only the kernel can follow it.
    fn follow_descriptor(&mut self, name: &OsStr, path: PathBuf) -> Result<Option<Destination>, TreeError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.at, name, flags, Mode::empty()).map_err(TreeError::io("open", &path))?;
        let stat = rustix::fs::fstat(&fd).map_err(TreeError::io("open", &path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                (self.at, self.shown) = (fd, path);
                Ok(None)
            }
            _ if !self.rest.is_empty() => Err(TreeError::io("open", &path)(Errno::NOTDIR)),
            FileType::RegularFile => Ok(Some(Destination::Descriptor(fd))),
            kind => Err(TreeError::Special { path, kind: SpecialFile::of(kind) }),
        }
    }
}

fn open(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(TreeError::io("open", path))
}

fn is_procfs(directory: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(directory).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn link(target: &Path, at: &Path, is_marked: bool) {
        symlink(target, at).expect("linked");
        if is_marked {
            mark(CWD, at.as_os_str()).expect("marked");
        }
    }

    #[test]
    fn own_links_are_followed_and_marked_links_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir_all(at("real/inner")).expect("made");
        std::fs::write(at("real/file"), "x").expect("written");
        link(Path::new("real"), &at("own"), false);
        link(&at("own"), &at("own-to-own"), false);
        link(Path::new("real/inner"), &at("marked"), true);
        link(Path::new("marked"), &at("own-to-marked"), false);

        let resolve = |name: &str| resolve(&at(name), Links::RefuseMarked);
        for name in ["own", "own/", "own-to-own/", "own-to-own/inner/..", "./own/."] {
            assert!(matches!(resolve(name), Ok(Destination::Directory(_))), "{name}: {:?}", resolve(name));
        }
        assert!(matches!(resolve("own/file"), Ok(Destination::Name(Name { exists: true, .. }))));
        assert!(matches!(
            resolve("own/new"),
            Ok(Destination::Name(Name { exists: false, ends_with_slash: false, .. }))
        ));
        assert!(matches!(resolve("own/new/"), Ok(Destination::Name(Name { ends_with_slash: true, .. }))));
        for name in ["marked", "marked/", "marked/new", "own-to-marked", "own-to-marked/x"] {
            assert!(matches!(resolve(name), Err(TreeError::MarkedLink(_))), "{name}: {:?}", resolve(name));
        }
        assert!(super::resolve(&at("marked"), Links::Follow).is_ok());
    }

    #[test]
    fn unresolvable_path_names_the_component() {
        let home = tempfile::tempdir().expect("a directory");
        let at = |name: &str| home.path().join(name);
        std::fs::write(at("file"), "x").expect("written");
        link(Path::new("loop"), &at("loop"), false);
        for (name, message) in [
            ("no/such", "/no: cannot open: No such file or directory"),
            ("file/x", "/file: cannot open: Not a directory"),
            ("file/", "/file: cannot open: Not a directory"),
            ("loop", "/loop: cannot open: Too many levels of symbolic links"),
        ] {
            let error = resolve(&at(name), Links::Follow).expect_err(name).to_string();
            assert!(error.ends_with(message), "{error}");
        }
    }

    #[test]
    fn proc_links_resolve_to_open_files() {
        let home = tempfile::tempdir().expect("a directory");
        let file = std::fs::File::create(home.path().join("file")).expect("created");
        let (pipe, _write) = rustix::pipe::pipe().expect("a pipe");
        let path = |fd: BorrowedFd<'_>| {
            use std::os::fd::AsRawFd;
            PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        };
        assert!(matches!(resolve(&path(file.as_fd()), Links::RefuseMarked), Ok(Destination::Descriptor(_))));
        let error = resolve(&path(pipe.as_fd()), Links::RefuseMarked).expect_err("a pipe");
        assert!(matches!(error, TreeError::Special { kind: SpecialFile::Pipe, .. }), "{error}");
    }
}
