//! Image files: opened with everything beneath them, and locked.
//!
//! A file that a machine writes is locked against every other machine; one that is only read is locked against
//! writers (`flock(2)`; it goes with the process). A qcow2 layer's backing files are only ever read. Their formats are
//! those that the layers name, never guessed: a guest could write another format's header into a raw disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, Storage};
use rustix::fs::{FlockOperation, flock};

use super::disk::SECTOR;
use super::image_file::ImageFile;
use super::refcounts;
use crate::vmm::config::DiskFormat;
use crate::vmm::passed::PassedFiles;

/// The most files beneath a disk. Each costs a descriptor, and a read may have to look at all of them.
pub const MAX_LAYERS: usize = 64;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file could not be opened.
    #[error("the disk image {} cannot be opened: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the disk image {} is in use by another machine, which must end first", .0.display())]
    InUse(PathBuf),
    /// It is not a file that holds a disk.
    #[error("{} is neither a regular file nor a block device", .0.display())]
    NotADisk(PathBuf),
    /// It is not in the format that was named.
    #[error("{} is not a sound {format} image: {source}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Which format.
        format: &'static str,
        /// What imago said.
        source: io::Error,
    },
    /// The copy-on-write layer of an ephemeral disk could not be made.
    #[error("no copy-on-write layer for {} can be made in {}: {source}", path.display(), folder.display())]
    Layer {
        /// The image beneath it.
        path: PathBuf,
        /// Where it would have been.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image has no sector.
    #[error("the disk image {} is empty: a disk has at least one sector of {SECTOR} bytes", .0.display())]
    Empty(PathBuf),
    /// The image keeps its data in a file of its own.
    #[error("the disk image {} keeps its data in another file, which is not supported", .0.display())]
    DataFile(PathBuf),
    /// The image does not say what its backing file is.
    #[error("the disk image {} names a backing file of the format {format:?}; it must be \"raw\" or \"qcow2\"", path.display())]
    BackingFormat {
        /// Which image.
        path: PathBuf,
        /// What it says; nothing where it says nothing.
        format: String,
    },
    /// The image needs another file, and may not have one.
    #[error(
        "{} is a layer over another file, {backing:?}, without which it is worth nothing; only images that stand alone \
         are taken. Join them with `qemu-img convert -O qcow2 {} whole.qcow2`", path.display(), path.display()
    )]
    HasBacking {
        /// Which image.
        path: PathBuf,
        /// The other file, as the header names it.
        backing: String,
    },
    /// There are more layers than can be, or they form a loop.
    #[error("the disk image {} has more than {MAX_LAYERS} files beneath it", .0.display())]
    TooManyLayers(PathBuf),
    /// The layer is for another disk.
    #[error("the layer {} is not over {}, which is what the disk has now", layer.display(), present.display())]
    NotOver {
        /// The layer.
        layer: PathBuf,
        /// The file that the disk has.
        present: PathBuf,
    },
    /// The layer is too small.
    #[error("the layer {} has {size} bytes, fewer than the {present} of the disk", layer.display())]
    SmallLayer {
        /// The layer.
        layer: PathBuf,
        /// Its virtual size.
        size: u64,
        /// The disk's.
        present: u64,
    },
    /// The disk's kind of access does not go with what is asked for.
    #[error("the disk {0:?} does not write to its file, so that there is nothing to {1}")]
    NotWritten(String, &'static str),
    /// The new size is smaller.
    #[error("the disk {id:?} has {present} bytes and cannot shrink to {size}")]
    Shrink {
        /// Which disk.
        id: String,
        /// The size that was asked for.
        size: u64,
        /// The size that it has.
        present: u64,
    },
    /// The new size is not one of a disk.
    #[error("{0} bytes are not a whole number of sectors of {SECTOR} bytes")]
    PartialSector(u64),
    /// The host failed.
    #[error("the disk {id:?} could not {what}: {source}")]
    Host {
        /// Which disk.
        id: String,
        /// What it was to do.
        what: &'static str,
        /// Why it could not.
        source: io::Error,
    },
}

/// An image and everything beneath it.
#[derive(Debug)]
pub(super) struct Image {
    /// The image's bytes.
    pub access: FormatAccess<ImageFile>,
    /// The top file once more, the same open file: for its lock, and to have it written out while the image is in use.
    pub file: File,
}

/// What stands in a layer's header about the file beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file, by a path that can be opened.
    pub path: PathBuf,
    /// Its name as the header has it, which is relative to the layer's folder if it is not absolute.
    pub name: String,
    /// Its format.
    pub format: DiskFormat,
}

/// Opens and locks an image and everything beneath it.
pub(super) fn open(path: &Path, format: DiskFormat, writable: bool, files: &PassedFiles) -> Result<Image, BlockError> {
    let file = open_file(path, writable, files)?;
    lock(&file, path, writable)?;
    image(file, path, format, writable, (0, files))
}

/// Opens `path` as it is now, without a lock of its own, to stand beneath a layer. The caller holds the file's lock, and
/// gives it to the image with [`lock`].
pub(super) fn open_unlocked(path: &Path, format: DiskFormat, files: &PassedFiles) -> Result<Image, BlockError> {
    image(open_file(path, false, files)?, path, format, false, (1, files))
}

/// Opens the layer at `path` over `base`, which it must name as its backing file.
pub(super) fn open_layer(path: &Path, base: Image, base_path: &Path, files: &PassedFiles) -> Result<Image, BlockError> {
    let file = open_file(path, true, files)?;
    lock(&file, path, true)?;
    let mut layer = qcow2(&file, path, true)?;
    let over = match backing_of(&layer, path)? {
        Some(backing) => files.open(&backing.path, false).is_ok_and(|named| is_same(&named, &base.file)),
        None => false,
    };
    if !over {
        return Err(BlockError::NotOver { layer: path.to_path_buf(), present: base_path.to_path_buf() });
    }
    layer.set_backing(Some(base.access));
    layer.set_data_file(None);
    Ok(Image { access: FormatAccess::new(layer), file })
}

/// An unnamed qcow2 file over `base`: it takes all writes and is gone with the process.
pub(super) fn unnamed_layer(base: Image, folder: &Path) -> io::Result<Image> {
    let file = tempfile::tempfile_in(folder)?;
    let size = base.access.size();
    let backing = Arc::new(base.access);
    let layer =
        Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::create_builder(ImageFile::try_from(file.try_clone()?)?)
            .size(size)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::builder(image).backing(Some(backing)))
            })?;
    Ok(Image { access: FormatAccess::new(layer), file })
}

/// What the header of the qcow2 image at `path` says about the file beneath it.
pub fn backing(path: &Path) -> Result<Option<Backing>, BlockError> {
    let file = open_file(path, false, &PassedFiles::default())?;
    backing_of(&qcow2(&file, path, false)?, path)
}

/// The files of an image, the topmost first, as far as they can be told: whoever opens them says what is wrong.
pub fn chain(path: &Path, format: DiskFormat) -> Vec<PathBuf> {
    let mut files = vec![path.to_path_buf()];
    let mut next = (path.to_path_buf(), format);
    while files.len() <= MAX_LAYERS && next.1 == DiskFormat::Qcow2 {
        let Ok(Some(backing)) = backing(&next.0) else { break };
        files.push(backing.path.clone());
        next = (backing.path, backing.format);
    }
    files
}

/// Opens an image that nobody writes, and what is beneath it.
pub fn open_to_read(path: &Path, format: DiskFormat) -> Result<FormatAccess<ImageFile>, BlockError> {
    Ok(open(path, format, false, &PassedFiles::default())?.access)
}

/// Opens a qcow2 image that somebody else made: it may not lead to any other file.
pub fn open_alone(path: &Path) -> Result<FormatAccess<ImageFile>, BlockError> {
    let file = open_file(path, false, &PassedFiles::default())?;
    lock(&file, path, false)?;
    let mut image = qcow2(&file, path, false)?;
    if let Some(backing) = image.implicit_backing_file() {
        return Err(BlockError::HasBacking { path: path.to_path_buf(), backing: backing.clone() });
    }
    image.set_backing(None);
    image.set_data_file(None);
    Ok(FormatAccess::new(image))
}

/// The size of the disk in an image, in bytes. A machine may be writing it.
pub fn virtual_size(path: &Path, format: DiskFormat) -> Result<u64, BlockError> {
    let file = open_file(path, false, &PassedFiles::default())?;
    match format {
        DiskFormat::Raw => {
            let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
            storage(&file, path, false)?.size().map_err(failed)
        }
        DiskFormat::Qcow2 => Ok(qcow2(&file, path, false)?.size()),
    }
}

/// Locks a file: against everybody if it is to be written, else against writers. A lock that the same open file has
/// already becomes the new one.
pub(super) fn lock(file: &File, path: &Path, writable: bool) -> Result<(), BlockError> {
    let lock = if writable { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    flock(file, lock).map_err(|_| BlockError::InUse(path.to_path_buf()))
}

fn open_file(path: &Path, writable: bool, files: &PassedFiles) -> Result<File, BlockError> {
    let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
    let file = files.open(path, writable).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(BlockError::NotADisk(path.to_path_buf()));
    }
    Ok(file)
}

/// The image in `file`, which has `above` layers over it; what is beneath it may be among `files`.
fn image(
    file: File,
    path: &Path,
    format: DiskFormat,
    writable: bool,
    (above, files): (usize, &PassedFiles),
) -> Result<Image, BlockError> {
    let access = match format {
        DiskFormat::Raw => {
            let bad = |source| BlockError::Format { path: path.to_path_buf(), format: "raw", source };
            FormatAccess::new(Raw::open_image(storage(&file, path, writable)?, writable).map_err(bad)?)
        }
        DiskFormat::Qcow2 => {
            let mut image = qcow2(&file, path, writable)?;
            let base =
                backing_of(&image, path)?.map(|backing| open_backing(&backing, path, (above, files))).transpose()?;
            image.set_backing(base.map(|base| base.access));
            image.set_data_file(None);
            FormatAccess::new(image)
        }
    };
    Ok(Image { access, file })
}

fn open_backing(backing: &Backing, path: &Path, (above, files): (usize, &PassedFiles)) -> Result<Image, BlockError> {
    if above == MAX_LAYERS {
        return Err(BlockError::TooManyLayers(path.to_path_buf()));
    }
    let file = open_file(&backing.path, false, files)?;
    lock(&file, &backing.path, false)?;
    image(file, &backing.path, backing.format, false, (above + 1, files))
}

/// A qcow2 image without what is beneath it; one that is to be written is mended first.
fn qcow2(file: &File, path: &Path, writable: bool) -> Result<Qcow2<ImageFile>, BlockError> {
    let bad = |source| BlockError::Format { path: path.to_path_buf(), format: "qcow2", source };
    if writable {
        let mended = refcounts::mend(file).map_err(bad)?;
        if mended > 0 {
            log::warn!("{}: {mended} clusters in use were not counted; its writer was killed", path.display());
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
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok(Some(Backing { path: folder.join(name), name: name.clone(), format }))
}

fn storage(file: &File, path: &Path, writable: bool) -> Result<ImageFile, BlockError> {
    let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
    ImageFile::new(file.try_clone().map_err(failed)?, path, writable).map_err(failed)
}

/// Whether both are the same file.
fn is_same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A qcow2 file whose header names `backing`, with its format where there is one.
    fn layer(path: &Path, backing: &str, format: &str) {
        let file = ImageFile::try_from(File::create_new(path).unwrap()).unwrap();
        let builder = Qcow2::<ImageFile>::create_builder(file).size(1 << 20);
        builder.backing(backing.into(), format.into()).create().unwrap();
    }

    #[test]
    fn what_is_beneath_a_layer_is_locked_against_writers() {
        let folder = tempfile::tempdir().unwrap();
        let (base, top) = (folder.path().join("base"), folder.path().join("top"));
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        layer(&top, "base", "raw");
        let image = open(&top, DiskFormat::Qcow2, true, &PassedFiles::default()).unwrap();
        let mut bytes = [0; 512];
        image.access.read(bytes.as_mut_slice(), 4096).unwrap();
        assert_eq!(bytes, [7; 512]);
        assert!(
            matches!(open(&base, DiskFormat::Raw, true, &PassedFiles::default()), Err(BlockError::InUse(path)) if path == base)
        );
        open(&base, DiskFormat::Raw, false, &PassedFiles::default()).unwrap();
        drop(image);
        open(&base, DiskFormat::Raw, true, &PassedFiles::default()).unwrap();
    }

    #[test]
    fn a_layer_over_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        layer(&folder.path().join("one"), "two", "qcow2");
        layer(&folder.path().join("two"), "one", "qcow2");
        let opened = open(&folder.path().join("one"), DiskFormat::Qcow2, false, &PassedFiles::default());
        assert!(matches!(opened, Err(BlockError::TooManyLayers(_))));
    }

    #[test]
    fn formats_are_not_guessed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base"), vec![7; 1 << 20]).unwrap();
        for (name, format) in [("none", ""), ("other", "vmdk")] {
            let path = folder.path().join(name);
            layer(&path, "base", format);
            assert!(
                matches!(
                    open(&path, DiskFormat::Qcow2, false, &PassedFiles::default()),
                    Err(BlockError::BackingFormat { .. })
                ),
                "{name}"
            );
        }
    }
}
