//! Images from elsewhere: bundles ([`super::bundle`]) and root file systems ([`root`]).
//!
//! Everything here fills one empty folder that nobody else knows of yet. A call that fails leaves the folder empty; one
//! that succeeds has everything in it on the disk, the manifest last.

mod archive;
mod content;
mod ext4;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod newc;
mod pax;
pub mod root;
mod sparse_map;
mod tree;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::image::{ImageError, MANIFEST, Manifest};
use crate::host::disk_image;
use crate::host::space::{FreeSpace, RESERVE, SpaceExhausted};

pub(super) use archive::{Entry, TarFile};
pub(super) use content::{Content, HEAD, detect, unsupported};

/// The largest file of an image: EBS has no larger volume.
pub(super) const LARGEST_FILE: u64 = 16 << 40;

/// Hears how far an import is.
pub trait Progress {
    /// A part of the work begins, with about so many bytes.
    fn begin(&self, what: &str, bytes: u64);
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
    /// Something that the user should know about the image, in a sentence.
    fn note(&self, sentence: &str);
}

/// Hears nothing.
impl Progress for () {
    fn begin(&self, _what: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _sentence: &str) {}
}

/// Why something cannot be imported, checked or exported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is not enough space for what is known to come.
    #[error(
        "{} has {free} MiB free, of which {} MiB stay free for the rest of the host, and the image takes {needed} MiB: \
         make room, or set WISP_HOME to a directory on another disk",
        folder.display(), RESERVE >> 20
    )]
    NoSpace {
        /// Where.
        folder: PathBuf,
        /// What it takes, in MiB.
        needed: u64,
        /// What is there.
        free: u64,
    },
    /// There is not enough space for what came.
    #[error("{0}. Make room, or set WISP_HOME to a directory on another disk")]
    SpaceExhausted(SpaceExhausted),
    /// The folder that is to be filled is not empty.
    #[error("{} is not an empty directory, and only such a one can take an image", .0.display())]
    NotEmpty(PathBuf),
    /// The bundle or its manifest is not one.
    #[error(transparent)]
    Bundle(#[from] ImageError),
    /// A file is neither a bundle nor anything else that can be imported.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Something in an archive cannot be taken.
    #[error("{} holds {entry:?}, {reason}", path.display())]
    Entry {
        /// The archive.
        path: PathBuf,
        /// What it holds.
        entry: String,
        /// What is wrong with it: "which ...".
        reason: String,
    },
    /// An archive ends too early, or is no archive from somewhere on.
    #[error("the archive {} is damaged or cut off: {reason}. Fetch it again", path.display())]
    BadArchive {
        /// The archive.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Something is larger than an import takes.
    #[error("{} cannot be imported: {exceeded}. {advice}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What exceeds which limit.
        exceeded: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file is not what the manifest says.
    #[error("{file} of {} is damaged: its SHA-256 is {found} in place of {expected}. Fetch the bundle again", bundle.display())]
    Damaged {
        /// The bundle.
        bundle: PathBuf,
        /// The file.
        file: String,
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A disk image is unsound, or needs other files.
    #[error(transparent)]
    Disk(disk_image::ImageError),
    /// The file system could not be made.
    #[error("no ext4 file system can be made of {}: {reason}", path.display())]
    FileSystem {
        /// What it was to be made of.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The agent's initial RAM disk is not one.
    #[error("the agent that this wisp brings is damaged ({0}): build or install wisp again")]
    Agent(String),
    /// The file to be written is there.
    #[error("{} exists already; choose another name, or remove it", .0.display())]
    Exists(PathBuf),
}

impl ImportError {
    pub(super) fn read(path: &Path) -> impl Fn(io::Error) -> ImportError + use<> {
        let path = path.to_path_buf();
        move |source| ImportError::Read { path: path.clone(), source }
    }

    pub(super) fn write(path: &Path) -> impl Fn(io::Error) -> ImportError + use<> {
        let path = path.to_path_buf();
        move |source| match exhausted(&source) {
            Some(exhausted) => ImportError::SpaceExhausted(exhausted),
            None => ImportError::Write { path: path.clone(), source },
        }
    }

    pub(super) fn unusable(path: &Path, reason: impl Into<String>) -> ImportError {
        ImportError::Unusable { path: path.to_path_buf(), reason: reason.into() }
    }
}

impl From<disk_image::ImageError> for ImportError {
    fn from(error: disk_image::ImageError) -> ImportError {
        match &error {
            disk_image::ImageError::Write { source, .. } => exhausted(source).map(ImportError::SpaceExhausted),
            _ => None,
        }
        .unwrap_or(ImportError::Disk(error))
    }
}

/// The cause of an error that [`FreeSpace::take`] returned.
fn exhausted(error: &io::Error) -> Option<SpaceExhausted> {
    error.get_ref().and_then(|cause| cause.downcast_ref()).cloned()
}

/// A folder that is being filled: unless it is kept, it is empty again when this is dropped.
#[derive(Debug)]
pub(super) struct Landing<'a> {
    folder: &'a Path,
    /// The free space for the files in it.
    pub space: FreeSpace,
    kept: bool,
}

impl<'a> Landing<'a> {
    /// Takes `folder`, which is empty.
    pub fn new(folder: &'a Path) -> Result<Landing<'a>, ImportError> {
        Landing::with_space(folder, FreeSpace::of(folder))
    }

    /// Takes `folder`, which is empty, with this space for files.
    pub fn with_space(folder: &'a Path, space: FreeSpace) -> Result<Landing<'a>, ImportError> {
        let mut entries = fs::read_dir(folder).map_err(ImportError::read(folder))?;
        if entries.next().is_some() {
            return Err(ImportError::NotEmpty(folder.to_path_buf()));
        }
        Ok(Landing { folder, space, kept: false })
    }

    /// The path of a file in it.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// A new file in it, its owner's alone.
    pub fn create(&self, file: &str) -> Result<File, ImportError> {
        let path = self.path(file);
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        opened.map_err(ImportError::write(&path))
    }

    /// Refuses what will not fit.
    pub fn check_space(&self, bytes: u64) -> Result<(), ImportError> {
        let usable = self.space.usable().map_err(ImportError::read(self.folder))?;
        if bytes > usable {
            let folder = self.folder.to_path_buf();
            return Err(ImportError::NoSpace {
                folder,
                needed: bytes.div_ceil(1 << 20),
                free: (usable + RESERVE) >> 20,
            });
        }
        Ok(())
    }

    /// Writes the manifest, makes everything durable, and lets the folder be.
    pub fn keep(mut self, manifest: &str) -> Result<(), ImportError> {
        let path = self.path(MANIFEST);
        self.create(MANIFEST)?.write_all(manifest.as_bytes()).map_err(ImportError::write(&path))?;
        for entry in fs::read_dir(self.folder).map_err(ImportError::read(self.folder))? {
            let path = entry.map_err(ImportError::read(self.folder))?.path();
            File::open(&path).and_then(|file| file.sync_all()).map_err(ImportError::write(&path))?;
        }
        File::open(self.folder).and_then(|folder| folder.sync_all()).map_err(ImportError::write(self.folder))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for entry in fs::read_dir(self.folder).into_iter().flatten().flatten() {
            if let Err(error) = fs::remove_file(entry.path()) {
                log::warn!("{} cannot be removed: {error}", entry.path().display());
            }
        }
    }
}

/// Opens a regular file; `links` says whether it may be reached through a symbolic link. Nothing else is opened: a pipe
/// would wait, and a device could be anything.
pub(super) fn open_regular(path: &Path, links: bool) -> Result<File, ImportError> {
    let mut flags = libc::O_NONBLOCK;
    if !links {
        flags |= libc::O_NOFOLLOW;
    }
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => ImportError::unusable(path, "it is a symbolic link; a bundle has regular files only"),
        _ => ImportError::read(path)(error),
    })?;
    if !file.metadata().map_err(ImportError::read(path))?.is_file() {
        return Err(ImportError::unusable(path, "it is not a regular file"));
    }
    Ok(file)
}

/// A manifest as text.
fn render(manifest: &Manifest) -> String {
    toml::to_string(manifest).expect("a manifest is tables of text")
}

#[cfg(test)]
pub(super) mod testing {
    use std::process::Command;

    /// Runs a program of e2fsprogs, squashfs-tools or qemu-utils, and returns what it prints.
    pub fn run(program: &str, args: &[&str]) -> String {
        // Where Debian has what only root was once to use.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let output = Command::new(program).args(args).env("PATH", path).output();
        let output = output.unwrap_or_else(|error| panic!("{program} is needed and cannot be run: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_landing_that_is_not_kept_is_empty_again() {
        let folder = tempfile::tempdir().unwrap();
        let landing = Landing::new(folder.path()).unwrap();
        landing.create("vmlinux").unwrap();
        drop(landing);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_an_empty_folder_is_filled_and_nothing_of_another_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine"), "x").unwrap();
        assert!(matches!(Landing::new(folder.path()), Err(ImportError::NotEmpty(_))));
        assert!(folder.path().join("mine").exists());
    }

    #[test]
    fn more_than_the_disk_has_is_refused_before_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let error = Landing::new(folder.path()).unwrap().check_space(u64::MAX).unwrap_err().to_string();
        assert!(error.contains("make room"), "{error}");
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open_regular(&link, true).is_ok());
        assert!(open_regular(&link, false).unwrap_err().to_string().contains("symbolic link"));
        assert!(open_regular(folder.path(), true).unwrap_err().to_string().contains("not a regular file"));
    }
}
