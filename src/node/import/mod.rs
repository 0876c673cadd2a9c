//! Import of images: bundles and root file systems ([`root`]).
//!
//! An import fills an empty directory that no other process is using yet. A failed import leaves the directory empty. A
//! successful import makes all files durable; it writes the manifest last.

mod archive;
mod attributes;
mod content;
mod ext4;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod newc;
mod number;
mod pax;
pub mod root;
mod sparse_map;
mod tree;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::image::{ImageError, MANIFEST, Manifest};
use disk::disk_image;
use disk::space::{FreeSpace, RESERVE, SpaceExhausted};

pub(super) use archive::{ArchiveEntry, TarFile};
pub(super) use content::{Content, HEAD, detect, unsupported};

/// Maximum size of a file in an image in bytes: the maximum size of an EBS volume.
pub(super) const LARGEST_FILE: u64 = 16 << 40;

pub trait ImportProgress {
    /// Starts a step of approximately `bytes` bytes.
    fn begin(&self, what: &str, bytes: u64);
    fn advance(&self, bytes: u64);
    /// Reports a fact about the image as a complete sentence.
    fn note(&self, sentence: &str);
}

impl ImportProgress for () {
    fn begin(&self, _what: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _sentence: &str) {}
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The required space is known before the import writes the files, and is more than the usable free space.
    #[error(
        "not enough disk space in {}: {free} MiB are free, {} MiB must stay free for the rest of the host, and the \
         image takes {needed} MiB. Free some space, or set WISP_HOME to a directory on another disk",
        dir.display(), RESERVE >> 20
    )]
    NoSpace {
        dir: PathBuf,
        /// In MiB.
        needed: u64,
        /// In MiB.
        free: u64,
    },
    /// The usable free space was exhausted while the import wrote a file.
    #[error("{0}. Free some space, or set WISP_HOME to a directory on another disk")]
    SpaceExhausted(SpaceExhausted),
    #[error("the directory {} must be empty", .0.display())]
    NotEmpty(PathBuf),
    #[error(transparent)]
    Bundle(#[from] ImageError),
    /// The file cannot be used, for example because of its format, type or size.
    #[error("{}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("{} contains {entry:?}, {reason}", path.display())]
    Entry {
        path: PathBuf,
        entry: String,
        /// A relative clause, such as "which appears twice".
        reason: String,
    },
    #[error("the archive {} is damaged or truncated: {reason}. Download it again", path.display())]
    BadArchive { path: PathBuf, reason: String },
    #[error("cannot import {}: {exceeded}. {advice}", path.display())]
    Limit {
        path: PathBuf,
        /// The limit, and the value that exceeds it.
        exceeded: String,
        advice: &'static str,
    },
    #[error(
        "{file} in {} is damaged: its SHA-256 is {found} instead of {expected}. Download the bundle again",
        bundle.display()
    )]
    Damaged { bundle: PathBuf, file: String, expected: String, found: String },
    /// A disk image is invalid or depends on other files, or it cannot be read or written.
    #[error(transparent)]
    Disk(disk_image::ImageError),
    #[error("cannot create an ext4 file system from {}: {reason}", path.display())]
    FileSystem { path: PathBuf, reason: String },
    #[error("the embedded agent is damaged ({0}): rebuild or reinstall wisp")]
    Agent(String),
    #[error("{} already exists: choose another name or remove it", .0.display())]
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

fn exhausted(error: &io::Error) -> Option<SpaceExhausted> {
    error.get_ref().and_then(|cause| cause.downcast_ref()).cloned()
}

/// The destination directory of an import. Unless [`Landing::keep`] succeeds, dropping this removes its files.
#[derive(Debug)]
pub(super) struct Landing<'a> {
    dir: &'a Path,
    pub space: FreeSpace,
    kept: bool,
}

impl<'a> Landing<'a> {
    pub fn new(dir: &'a Path) -> Result<Landing<'a>, ImportError> {
        Landing::with_space(dir, FreeSpace::of(dir))
    }

    pub fn with_space(dir: &'a Path, space: FreeSpace) -> Result<Landing<'a>, ImportError> {
        let mut entries = fs::read_dir(dir).map_err(ImportError::read(dir))?;
        if entries.next().is_some() {
            return Err(ImportError::NotEmpty(dir.to_path_buf()));
        }
        Ok(Landing { dir, space, kept: false })
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub fn create(&self, file: &str) -> Result<File, ImportError> {
        let path = self.path(file);
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        opened.map_err(ImportError::write(&path))
    }

    pub fn check_space(&self, bytes: u64) -> Result<(), ImportError> {
        let usable = self.space.usable().map_err(ImportError::read(self.dir))?;
        if bytes > usable {
            let dir = self.dir.to_path_buf();
            return Err(ImportError::NoSpace { dir, needed: bytes.div_ceil(1 << 20), free: (usable + RESERVE) >> 20 });
        }
        Ok(())
    }

    /// Writes the manifest, makes all files durable, and keeps them.
    pub fn keep(mut self, manifest: &str) -> Result<(), ImportError> {
        let path = self.path(MANIFEST);
        self.create(MANIFEST)?.write_all(manifest.as_bytes()).map_err(ImportError::write(&path))?;
        for entry in fs::read_dir(self.dir).map_err(ImportError::read(self.dir))? {
            let path = entry.map_err(ImportError::read(self.dir))?.path();
            File::open(&path).and_then(|file| file.sync_all()).map_err(ImportError::write(&path))?;
        }
        File::open(self.dir).and_then(|dir| dir.sync_all()).map_err(ImportError::write(self.dir))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for entry in fs::read_dir(self.dir).into_iter().flatten().flatten() {
            if let Err(error) = fs::remove_file(entry.path()) {
                log::warn!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }
}

/// Opens a regular file. Follows a symbolic link only if `links` is true. Refuses all other types of files: reading a
/// pipe could block, and reading a device could have side effects.
pub(super) fn open_regular(path: &Path, links: bool) -> Result<File, ImportError> {
    let mut flags = libc::O_NONBLOCK;
    if !links {
        flags |= libc::O_NOFOLLOW;
    }
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => {
            ImportError::unusable(path, "it is a symbolic link; a bundle can contain only regular files")
        }
        _ => ImportError::read(path)(error),
    })?;
    if !file.metadata().map_err(ImportError::read(path))?.is_file() {
        return Err(ImportError::unusable(path, "it is not a regular file"));
    }
    Ok(file)
}

pub(super) fn render(manifest: &Manifest) -> String {
    toml::to_string(manifest).expect("a manifest can be serialized as TOML")
}

#[cfg(test)]
pub(super) mod testing {
    use std::process::Command;

    /// Runs a program of e2fsprogs, squashfs-tools or qemu-utils, and returns its output.
    pub fn run(program: &str, args: &[&str]) -> String {
        // Debian installs some of these programs in /usr/sbin, which is not in every user's PATH.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let output = Command::new(program).args(args).env("PATH", path).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run {program}, which this test needs: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_landing_removes_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let landing = Landing::new(dir.path()).unwrap();
        landing.create("vmlinux").unwrap();
        drop(landing);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nonempty_directory_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        assert!(matches!(Landing::new(dir.path()), Err(ImportError::NotEmpty(_))));
        assert!(dir.path().join("mine").exists());
    }

    #[test]
    fn space_check_over_free_space_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Landing::new(dir.path()).unwrap().check_space(u64::MAX).unwrap_err().to_string();
        assert!(error.contains("Free some space"), "{error}");
    }

    #[test]
    fn irregular_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open_regular(&link, true).is_ok());
        assert!(open_regular(&link, false).unwrap_err().to_string().contains("symbolic link"));
        assert!(open_regular(dir.path(), true).unwrap_err().to_string().contains("not a regular file"));
    }
}
