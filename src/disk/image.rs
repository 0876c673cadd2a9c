//! Opens and [locks](super::lock) image files and their backing files.
//!
//! The configuration names every backing file and its format. A header never causes a file to be opened, because a
//! compromised process could have written it: a header that names anything else is an error. Formats are never guessed,
//! because a guest could write another format's header into a raw disk. Backing files are always opened read-only.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, Storage};

use super::error::BlockError;
use super::image_file::ImageFile;
use super::lock::lock;
use super::{MAX_LAYERS, SECTOR, refcounts};
use machine::config::{BackingFile, DiskFormat};
use machine::passed_files::FdTable;

#[derive(Debug)]
pub(super) struct Image {
    pub access: FormatAccess<ImageFile>,
    /// A duplicate of the top file's descriptor, for its lock and for write-back while the image is in use.
    pub file: File,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The path that results from the name in the untrusted header.
    pub path: PathBuf,
    /// The name in the header. If relative, it is relative to the overlay's directory.
    pub name: String,
    pub format: DiskFormat,
}

/// Opens and locks an image and its `backing` files, topmost first.
pub(super) fn open(
    path: &Path,
    format: DiskFormat,
    backing: &[BackingFile],
    writable: bool,
    files: &FdTable,
) -> Result<Image, BlockError> {
    check_depth(path, backing)?;
    let file = open_file(path, writable, files)?;
    lock(&file, path, writable)?;
    image(file, path, format, backing, writable, files)
}

/// Opens `path` read-only, as a backing file. The caller already holds a lock on it, and locks the returned image
/// later.
pub(super) fn open_unlocked(
    path: &Path,
    format: DiskFormat,
    backing: &[BackingFile],
    files: &FdTable,
) -> Result<Image, BlockError> {
    image(open_file(path, false, files)?, path, format, backing, false, files)
}

/// Opens the qcow2 image at `path` over `base`, which is the first file in `backing`.
pub(super) fn open_layer(
    path: &Path,
    backing: &[BackingFile],
    base: Image,
    files: &FdTable,
) -> Result<Image, BlockError> {
    check_depth(path, backing)?;
    let file = open_file(path, true, files)?;
    lock(&file, path, true)?;
    let mut layer = qcow2(&file, path, true)?;
    check_backing(&layer, path, backing.first())?;
    layer.set_backing(Some(base.access));
    layer.set_data_file(None);
    Ok(Image { access: FormatAccess::new(layer), file })
}

/// Creates an unnamed qcow2 overlay over `base`. All writes go to the overlay, which is deleted when it is closed.
pub(super) fn unnamed_layer(base: Image, dir: &Path) -> io::Result<Image> {
    let file = tempfile::tempfile_in(dir)?;
    let size = base.access.size().next_multiple_of(SECTOR);
    let backing = Arc::new(base.access);
    let layer =
        Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::create_builder(ImageFile::try_from(file.try_clone()?)?)
            .size(size)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::builder(image).backing(Some(backing)))
            })?;
    Ok(Image { access: FormatAccess::new(layer), file })
}

/// Reads the name of the backing file from the header of the qcow2 image at `path`, without opening that file.
pub fn backing(path: &Path) -> Result<Option<Backing>, BlockError> {
    let file = open_file(path, false, &FdTable::default())?;
    backing_of(&qcow2(&file, path, false)?, path)
}

/// Opens an image for reading. Fails if another program has it or one of its backing files open for writing.
pub fn open_to_read(
    path: &Path,
    format: DiskFormat,
    backing: &[BackingFile],
) -> Result<FormatAccess<ImageFile>, BlockError> {
    Ok(open(path, format, backing, false, &FdTable::default())?.access)
}

/// Opens an untrusted qcow2 image, which must not refer to any other file.
pub fn open_alone(path: &Path) -> Result<FormatAccess<ImageFile>, BlockError> {
    let file = open_file(path, false, &FdTable::default())?;
    lock(&file, path, false)?;
    let mut image = qcow2(&file, path, false)?;
    if let Some(backing) = image.implicit_backing_file() {
        return Err(BlockError::HasBacking { path: path.to_path_buf(), backing: backing.clone() });
    }
    image.set_backing(None);
    image.set_data_file(None);
    Ok(FormatAccess::new(image))
}

/// Returns the virtual size of an image in bytes. The image may be in use by a VM.
pub fn virtual_size(path: &Path, format: DiskFormat) -> Result<u64, BlockError> {
    let file = open_file(path, false, &FdTable::default())?;
    match format {
        DiskFormat::Raw => {
            let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
            storage(&file, path, false)?.size().map_err(failed)
        }
        DiskFormat::Qcow2 => Ok(qcow2(&file, path, false)?.size()),
    }
}

fn open_file(path: &Path, writable: bool, files: &FdTable) -> Result<File, BlockError> {
    let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
    let file = files.open(path, writable).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(BlockError::NotADisk(path.to_path_buf()));
    }
    Ok(file)
}

/// Reads the image in `file`, and opens its `backing` files, topmost first.
fn image(
    file: File,
    path: &Path,
    format: DiskFormat,
    backing: &[BackingFile],
    writable: bool,
    files: &FdTable,
) -> Result<Image, BlockError> {
    let access = match format {
        DiskFormat::Raw if !backing.is_empty() => return Err(BlockError::RawBacking(path.to_path_buf())),
        DiskFormat::Raw => {
            let bad = |source| BlockError::Format { path: path.to_path_buf(), format: "raw", source };
            FormatAccess::new(Raw::open_image(storage(&file, path, writable)?, writable).map_err(bad)?)
        }
        DiskFormat::Qcow2 => {
            let mut image = qcow2(&file, path, writable)?;
            check_backing(&image, path, backing.first())?;
            let base = backing.split_first().map(|(first, rest)| open_backing(first, rest, files)).transpose()?;
            image.set_backing(base.map(|base| base.access));
            image.set_data_file(None);
            FormatAccess::new(image)
        }
    };
    Ok(Image { access, file })
}

fn open_backing(first: &BackingFile, rest: &[BackingFile], files: &FdTable) -> Result<Image, BlockError> {
    let file = open_file(&first.path, false, files)?;
    lock(&file, &first.path, false)?;
    image(file, &first.path, first.format, rest, false, files)
}

fn check_depth(path: &Path, backing: &[BackingFile]) -> Result<(), BlockError> {
    if backing.len() > MAX_LAYERS { Err(BlockError::TooManyLayers(path.to_path_buf())) } else { Ok(()) }
}

/// Rejects an image whose header names a backing file other than the `configured` one.
fn check_backing(image: &Qcow2<ImageFile>, path: &Path, configured: Option<&BackingFile>) -> Result<(), BlockError> {
    let found = backing_of(image, path)?;
    let is_configured = match (&found, configured) {
        (None, None) => true,
        (Some(found), Some(configured)) => {
            found.format == configured.format && normalized(&found.path) == normalized(&configured.path)
        }
        _ => false,
    };
    if is_configured {
        return Ok(());
    }
    let describe = |path: &str, format: DiskFormat| format!("{path:?} ({format:?})");
    Err(BlockError::OtherBacking {
        path: path.to_path_buf(),
        found: found.map(|found| describe(&found.name, found.format)),
        expected: configured.map(|file| describe(&file.path.to_string_lossy(), file.format)),
    })
}

/// Resolves `.` and `..` lexically, because a sandboxed process cannot see the file system.
fn normalized(path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(whole.pop()),
            other => whole.push(other),
        }
    }
    whole
}

/// Opens a qcow2 image without its backing file. If it is opened for writing, repairs its refcounts first.
fn qcow2(file: &File, path: &Path, writable: bool) -> Result<Qcow2<ImageFile>, BlockError> {
    let bad = |source| BlockError::Format { path: path.to_path_buf(), format: "qcow2", source };
    if writable {
        let repaired = refcounts::fix(file).map_err(bad)?;
        if repaired > 0 {
            log::warn!("{}: repaired {repaired} refcounts, because the last writer was killed", path.display());
        }
    }
    let image = Qcow2::open_image(storage(file, path, writable)?, writable).map_err(bad)?;
    if image.requires_external_data_file() {
        return Err(BlockError::DataFile(path.to_path_buf()));
    }
    Ok(image)
}

fn backing_of(image: &Qcow2<ImageFile>, path: &Path) -> Result<Option<Backing>, BlockError> {
    let Some(name) = image.implicit_backing_file() else { return Ok(None) };
    let format = match image.implicit_backing_format().map(String::as_str) {
        Some("raw") => DiskFormat::Raw,
        Some("qcow2") => DiskFormat::Qcow2,
        other => {
            let format = other.unwrap_or_default().to_string();
            return Err(BlockError::BackingFormat { path: path.to_path_buf(), format });
        }
    };
    let dir = path.parent().unwrap_or(Path::new(""));
    Ok(Some(Backing { path: dir.join(name), name: name.clone(), format }))
}

fn storage(file: &File, path: &Path, writable: bool) -> Result<ImageFile, BlockError> {
    let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
    ImageFile::new(file.try_clone().map_err(failed)?, path, writable).map_err(failed)
}

pub(super) fn is_same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Creates a qcow2 file whose header names `backing`, and its format unless that is empty.
    pub fn layer(path: &Path, backing: &str, format: &str) {
        let file = ImageFile::try_from(File::create_new(path).unwrap()).unwrap();
        let builder = Qcow2::<ImageFile>::create_builder(file).size(1 << 20);
        builder.backing(backing.into(), format.into()).create().unwrap();
    }

    fn raw(path: &Path) -> BackingFile {
        BackingFile { path: path.to_path_buf(), format: DiskFormat::Raw }
    }

    fn open_qcow2(path: &Path, backing: &[BackingFile], writable: bool) -> Result<Image, BlockError> {
        open(path, DiskFormat::Qcow2, backing, writable, &FdTable::default())
    }

    fn open_raw(path: &Path, writable: bool) -> Result<Image, BlockError> {
        open(path, DiskFormat::Raw, &[], writable, &FdTable::default())
    }

    #[test]
    fn backing_file_is_locked_against_writers() {
        let dir = tempfile::tempdir().unwrap();
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        layer(&top, "base", "raw");
        let image = open_qcow2(&top, &[raw(&base)], true).unwrap();
        let mut bytes = [0; 512];
        image.access.read(bytes.as_mut_slice(), 4096).unwrap();
        assert_eq!(bytes, [7; 512]);
        assert!(matches!(open_raw(&base, true), Err(BlockError::InUse(path)) if path == base));
        open_raw(&base, false).unwrap();
        drop(image);
        open_raw(&base, true).unwrap();
    }

    #[test]
    fn header_with_other_backing_file_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [base, secret, top, alone] = ["base", "secret", "top", "alone"].map(|name| dir.path().join(name));
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        // Opening a FIFO would block until it has a writer.
        rustix::fs::mkfifoat(rustix::fs::CWD, &secret, rustix::fs::Mode::RUSR).unwrap();
        let file = ImageFile::try_from(File::create_new(&alone).unwrap()).unwrap();
        Qcow2::<ImageFile>::create_builder(file).size(1 << 20).create().unwrap();
        for name in ["secret", "./secret", "../base", secret.to_str().unwrap()] {
            let _ = std::fs::remove_file(&top);
            layer(&top, name, "raw");
            for configured in [&[][..], &[raw(&base)]] {
                let opened = open_qcow2(&top, configured, false);
                assert!(matches!(opened, Err(BlockError::OtherBacking { .. })), "{name}, {configured:?}: {opened:?}");
            }
        }
        let expected = open_qcow2(&alone, &[raw(&base)], false);
        assert!(matches!(expected, Err(BlockError::OtherBacking { found: None, .. })), "{expected:?}");
        // The backing file is right, but its format is wrong.
        std::fs::remove_file(&top).unwrap();
        layer(&top, "base", "qcow2");
        assert!(matches!(open_qcow2(&top, &[raw(&base)], false), Err(BlockError::OtherBacking { .. })));
    }

    #[test]
    fn backing_file_named_by_equivalent_path_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        let (base, top) = (dir.path().join("base"), dir.path().join("volumes/top"));
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        for name in ["../base", "./../volumes/../base", base.to_str().unwrap()] {
            let _ = std::fs::remove_file(&top);
            layer(&top, name, "raw");
            open_qcow2(&top, &[raw(&base)], false).unwrap();
        }
    }

    #[test]
    fn layer_over_itself_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        layer(&one, "two", "qcow2");
        layer(&two, "one", "qcow2");
        let files = [&two, &one].map(|path| BackingFile { path: path.clone(), format: DiskFormat::Qcow2 });
        let opened = open_qcow2(&one, &files, false);
        assert!(matches!(opened, Err(BlockError::OtherBacking { .. })), "{opened:?}");
        let deep = vec![files[0].clone(); MAX_LAYERS + 1];
        assert!(matches!(open_qcow2(&one, &deep, false), Err(BlockError::TooManyLayers(_))));
    }

    #[test]
    fn formats_are_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        for (name, format) in [("none", ""), ("other", "vmdk")] {
            let path = dir.path().join(name);
            layer(&path, "base", format);
            let opened = open_qcow2(&path, &[raw(&base)], false);
            assert!(matches!(opened, Err(BlockError::BackingFormat { .. })), "{name}");
        }
        // A raw disk is read verbatim, even if the guest has written an image header to it.
        let path = dir.path().join("disk");
        layer(&path, "/etc/hostname", "raw");
        let length = path.metadata().unwrap().len();
        assert_eq!(open_raw(&path, true).unwrap().access.size(), length);
    }
}
