//! Disk images as files: made, grown, looked at. A running machine reads and writes its images itself.
//!
//! New images are written to be there after a power cut before these functions return.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, PermissiveImplicitOpenGate,
    StorageOpenOptions,
};

use crate::vmm::config::DiskFormat;

/// Why an image could not be made or read.
#[derive(Debug, thiserror::Error)]
#[error("the disk image {} cannot be {action}: {source}", path.display())]
pub struct DiskImageError {
    /// Which file.
    pub path: PathBuf,
    /// What was to be done with it, as a participle.
    pub action: &'static str,
    /// Why not.
    pub source: io::Error,
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DiskImageError {
    let path = path.to_path_buf();
    move |source| DiskImageError { path, action, source }
}

/// Makes a qcow2 image of `size` bytes of zeroes at `path`, where there must be nothing.
pub fn create(path: &Path, size: u64) -> Result<(), DiskImageError> {
    create_qcow2(path, size, None).map_err(failed(path, "made"))
}

/// Makes a qcow2 image at `path`, where there must be nothing, that reads as `backing` until it is written. It has the
/// size of `backing`, or a larger one. The backing file is named relative to the image: both can be moved together.
pub fn create_layer(
    path: &Path,
    backing: &Path,
    backing_format: DiskFormat,
    size: Option<u64>,
) -> Result<u64, DiskImageError> {
    let own = virtual_size(backing, backing_format)?;
    let size = size.map_or(own, |size| size.max(own));
    let name = relative(backing, path).ok_or_else(|| io::Error::other("its backing file is not beside it"));
    name.and_then(|name| create_qcow2(path, size, Some((name, format_name(backing_format)))))
        .map_err(failed(path, "made"))?;
    Ok(size)
}

/// The size in bytes of the disk that an image holds.
pub fn virtual_size(path: &Path, format: DiskFormat) -> Result<u64, DiskImageError> {
    open(path, format).map(|image| image.size()).map_err(failed(path, "read"))
}

/// The name of the file that a qcow2 image rests on, as the image gives it, if it rests on one.
pub fn backing_name(path: &Path) -> Result<Option<String>, DiskImageError> {
    let name = || {
        let options = StorageOpenOptions::new().write(false).filename(path);
        let storage = ImageFile::from_open_file(File::open(path)?, options)?;
        let image = Qcow2::<ImageFile>::builder(storage).backing(None).open(DenyImplicitOpenGate::default())?;
        Ok(image.implicit_backing_file().cloned())
    };
    name().map_err(failed(path, "read"))
}

fn open(path: &Path, format: DiskFormat) -> io::Result<FormatAccess<ImageFile>> {
    let options = StorageOpenOptions::new().write(false).filename(path);
    let storage = ImageFile::from_open_file(File::open(path)?, options)?;
    Ok(match format {
        DiskFormat::Raw => FormatAccess::new(Raw::open_image(storage, false)?),
        DiskFormat::Qcow2 => FormatAccess::new(
            Qcow2::<ImageFile>::builder(storage).write(false).open(PermissiveImplicitOpenGate::default())?,
        ),
    })
}

fn create_qcow2(path: &Path, size: u64, backing: Option<(String, &str)>) -> io::Result<()> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let result = write_qcow2(&file, size, backing).and_then(|()| sync_folder(path));
    if result.is_err() {
        // It would be in the way of the next attempt.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn write_qcow2(file: &File, size: u64, backing: Option<(String, &str)>) -> io::Result<()> {
    let mut builder = Qcow2::<ImageFile>::create_builder(ImageFile::try_from(file.try_clone()?)?).size(size);
    if let Some((name, format)) = backing {
        builder = builder.backing(name, format.to_string());
    }
    builder.create()?;
    file.sync_all()
}

/// Makes a new or removed name in a folder durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()
}

fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// `target` as seen from the folder of `from`; both are absolute.
fn relative(target: &Path, from: &Path) -> Option<String> {
    let folder = from.parent()?;
    let common = folder.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().count() - common;
    let mut path: PathBuf = std::iter::repeat_n("..", up).collect();
    path.extend(target.components().skip(common));
    path.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_reads_as_its_backing_file_and_can_be_larger() {
        let folder = tempfile::tempdir().unwrap();
        let (images, volumes) = (folder.path().join("images"), folder.path().join("volumes"));
        std::fs::create_dir(&images).unwrap();
        std::fs::create_dir(&volumes).unwrap();
        std::fs::write(images.join("root"), vec![7; 1 << 20]).unwrap();
        let layer = volumes.join("layer");
        assert_eq!(create_layer(&layer, &images.join("root"), DiskFormat::Raw, None).unwrap(), 1 << 20);
        let image = open(&layer, DiskFormat::Qcow2).unwrap();
        let mut bytes = [0; 512];
        image.read(&mut bytes[..], 4096).unwrap();
        assert_eq!(bytes, [7; 512]);
        let larger = volumes.join("larger");
        assert_eq!(create_layer(&larger, &layer, DiskFormat::Qcow2, Some(2 << 20)).unwrap(), 2 << 20);
        assert_eq!(virtual_size(&larger, DiskFormat::Qcow2).unwrap(), 2 << 20);
        assert_eq!(backing_name(&larger).unwrap().as_deref(), Some("layer"));
        assert_eq!(backing_name(&layer).unwrap().as_deref(), Some("../images/root"));
    }

    #[test]
    fn backing_files_are_named_relative_to_the_image() {
        let name = |target: &str, from: &str| relative(Path::new(target), Path::new(from)).unwrap();
        assert_eq!(name("/w/images/ami-1/root", "/w/volumes/vol-1"), "../images/ami-1/root");
        assert_eq!(name("/w/volumes/vol-0", "/w/volumes/vol-1"), "vol-0");
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, "mine").unwrap();
        let error = create(&path, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("cannot be made"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
