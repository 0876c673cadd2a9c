//! Disk images: raw and qcow2 files through imago, with or without a layer of their own on top.
//!
//! A file that a machine writes is locked against every other machine; one that is only read is locked against
//! writers (`flock(2)`; it goes with the process).

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::file::File as ImageFile;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, PermissiveImplicitOpenGate,
    StorageOpenOptions,
};
use rustix::fs::{FlockOperation, flock};
use vm_memory::VolatileSlice;

use crate::vmm::config::{DiskAccess, DiskConfig, DiskFormat};

/// A disk's sector, in bytes: the unit of every virtio-blk address.
pub const SECTOR: u64 = 512;

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
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    image: FormatAccess<ImageFile>,
    read_only: bool,
    /// A disk that is gone with the machine needs no durability.
    ephemeral: bool,
}

impl Disk {
    /// Opens what `config` names; a copy-on-write layer is made, without a name, in `folder`.
    pub fn open(config: &DiskConfig, folder: &Path) -> Result<Disk, BlockError> {
        let writable = config.access == DiskAccess::ReadWrite;
        let base = open_image(&config.path, config.format, writable)?;
        if base.size() < SECTOR {
            return Err(BlockError::Empty(config.path.clone()));
        }
        let ephemeral = config.access == DiskAccess::Ephemeral;
        let image = if ephemeral {
            layer(base, folder).map_err(|source| BlockError::Layer {
                path: config.path.clone(),
                folder: folder.to_path_buf(),
                source,
            })?
        } else {
            base
        };
        Ok(Disk { image, read_only: config.access == DiskAccess::ReadOnly, ephemeral })
    }

    /// The disk's size in whole sectors.
    pub fn sectors(&self) -> u64 {
        self.image.size() / SECTOR
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads into `buffers` from `offset`.
    pub fn read(&self, buffers: &[VolatileSlice], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
        self.image.readv(vector, offset)
    }

    /// Writes `buffers` at `offset`.
    pub fn write(&self, buffers: &[VolatileSlice], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers);
        self.image.writev(vector, offset)
    }

    /// Returns when everything written is on stable storage.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only || self.ephemeral {
            return Ok(());
        }
        self.image.flush()?;
        self.image.sync()
    }

    /// Gives the space of a range back; what is read there afterwards is anything.
    pub fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match self.image.discard_to_any(offset, length) {
            // A discard is advice: a file system that cannot punch holes ignores it.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Makes a range read as zeroes; with `unmap`, its space is given back where that is possible.
    pub fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap { self.image.discard_to_zero(offset, length) } else { self.image.write_zeroes(offset, length) }
    }
}

/// Opens and locks an image and everything beneath it.
fn open_image(path: &Path, format: DiskFormat, writable: bool) -> Result<FormatAccess<ImageFile>, BlockError> {
    let storage = open_storage(path, writable)?;
    let bad = |format| move |source| BlockError::Format { path: path.to_path_buf(), format, source };
    Ok(match format {
        DiskFormat::Raw => FormatAccess::new(Raw::open_image(storage, writable).map_err(bad("raw"))?),
        DiskFormat::Qcow2 => {
            let builder = Qcow2::<ImageFile>::builder(storage).write(writable);
            FormatAccess::new(builder.open(PermissiveImplicitOpenGate::default()).map_err(bad("qcow2"))?)
        }
    })
}

fn open_storage(path: &Path, writable: bool) -> Result<ImageFile, BlockError> {
    let failed = |source| BlockError::Open { path: path.to_path_buf(), source };
    let file = OpenOptions::new().read(true).write(writable).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(BlockError::NotADisk(path.to_path_buf()));
    }
    let lock = if writable { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    flock(&file, lock).map_err(|_| BlockError::InUse(path.to_path_buf()))?;
    let options = StorageOpenOptions::new().write(writable).filename(path);
    ImageFile::from_open_file(file, options).map_err(failed)
}

/// An unnamed qcow2 file over `base`: it takes all writes and is gone with the process.
fn layer(base: FormatAccess<ImageFile>, folder: &Path) -> io::Result<FormatAccess<ImageFile>> {
    let file: fs::File = tempfile::tempfile_in(folder)?;
    let size = base.size();
    let backing = Arc::new(base);
    let layer = Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::create_builder(ImageFile::try_from(file)?)
        .size(size)
        .create_open(DenyImplicitOpenGate::default(), |image| {
            Ok(Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::builder(image).backing(Some(backing)))
        })?;
    Ok(FormatAccess::new(layer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path, access: DiskAccess) -> DiskConfig {
        DiskConfig { id: "disk".into(), path: path.to_path_buf(), format: DiskFormat::Raw, access, root: false }
    }

    fn read(disk: &Disk, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        disk.read(&[VolatileSlice::from(bytes.as_mut_slice())], offset).unwrap();
        bytes
    }

    fn write(disk: &Disk, offset: u64, bytes: &mut [u8]) {
        disk.write(&[VolatileSlice::from(bytes)], offset).unwrap();
    }

    #[test]
    fn an_ephemeral_disk_leaves_its_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let disk = Disk::open(&config(&path, DiskAccess::Ephemeral), folder.path()).unwrap();
        write(&disk, 4096, &mut [9; 512]);
        assert_eq!(read(&disk, 4096, 512), [9; 512]);
        assert_eq!(read(&disk, 4608, 512), [7; 512]);
        assert_eq!(read(&disk, (1 << 20) - 512, 512), [7; 512]);
        drop(disk);
        assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_written_disk_cannot_be_opened_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![0; 4096]).unwrap();
        let _first = Disk::open(&config(&path, DiskAccess::ReadWrite), folder.path()).unwrap();
        for access in [DiskAccess::ReadWrite, DiskAccess::ReadOnly] {
            let second = Disk::open(&config(&path, access), folder.path());
            assert!(matches!(second, Err(BlockError::InUse(_))), "{access:?}");
        }
    }

    #[test]
    fn readers_share_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![0; 4096]).unwrap();
        let _first = Disk::open(&config(&path, DiskAccess::ReadOnly), folder.path()).unwrap();
        Disk::open(&config(&path, DiskAccess::Ephemeral), folder.path()).unwrap();
    }

    #[test]
    fn what_holds_no_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let open = |access, format| Disk::open(&DiskConfig { format, ..config(&path, access) }, folder.path());
        assert!(matches!(open(DiskAccess::ReadOnly, DiskFormat::Raw), Err(BlockError::Open { .. })));
        fs::write(&path, [0; 100]).unwrap();
        assert!(matches!(open(DiskAccess::ReadOnly, DiskFormat::Raw), Err(BlockError::Empty(_))));
        assert!(matches!(open(DiskAccess::ReadOnly, DiskFormat::Qcow2), Err(BlockError::Format { .. })));
        let not_a_file = Disk::open(&config(folder.path(), DiskAccess::ReadOnly), folder.path());
        assert!(matches!(not_a_file, Err(BlockError::NotADisk(_))));
    }

    #[test]
    fn zeroes_and_discards_stay_in_their_range() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mut disk = Disk::open(&config(&path, DiskAccess::ReadWrite), folder.path()).unwrap();
        disk.write_zeroes(1024, 512, false).unwrap();
        disk.write_zeroes(8192, 8192, true).unwrap();
        disk.discard(32_768, 4096).unwrap();
        assert_eq!(read(&disk, 512, 1536), [[7; 512], [0; 512], [7; 512]].concat());
        assert_eq!(read(&disk, 8192, 8192), [0; 8192]);
        assert_eq!(read(&disk, 36_864, 512), [7; 512]);
    }
}
