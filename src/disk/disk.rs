//! An open disk image. It counts I/O, and can grow or switch to a new overlay while it is in use.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{Mapping, ShallowMapping, Storage};
use vm_memory::VolatileSlice;

use super::SECTOR;
use super::counters::DiskCounters;
use super::error::BlockError;
use super::image::{self, Image};
use super::lock::lock;
use machine::config::{BackingFile, DiskAccess, DiskConfig, DiskFormat};
use machine::limits::DiskLimits;
use machine::passed_files::FdTable;

const LARGEST_CLUSTER: u64 = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileExtent {
    /// Valid for as long as the disk is open.
    pub fd: RawFd,
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl FileExtent {
    /// Reads the range into `buffers`, or returns false if part of it is not in the host's page cache.
    pub fn read_cached(&self, buffers: &[VolatileSlice]) -> bool {
        let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let vectors: Vec<_> =
            guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
        let (count, offset) = (vectors.len() as libc::c_int, self.offset as libc::off_t);
        // SAFETY: the guards keep the memory mapped. It is only ever accessed as volatile.
        let done = unsafe { libc::preadv2(self.fd, vectors.as_ptr(), count, offset, libc::RWF_NOWAIT) };
        u64::try_from(done).is_ok_and(|done| done == self.length)
    }
}

#[derive(Debug)]
pub struct Disk {
    id: String,
    image: Image,
    path: PathBuf,
    format: DiskFormat,
    backing: Vec<BackingFile>,
    access: DiskAccess,
    counters: Arc<DiskCounters>,
    limits: Option<DiskLimits>,
}

impl Disk {
    /// Opens the disk of `config`. An ephemeral disk gets an unnamed overlay in `dir`.
    pub fn open(config: &DiskConfig, dir: &Path) -> Result<Disk, BlockError> {
        Disk::open_with_fds(config, dir, &FdTable::default())
    }

    pub fn open_with_fds(config: &DiskConfig, dir: &Path, files: &FdTable) -> Result<Disk, BlockError> {
        let base =
            image::open(&config.path, config.format, &config.backing, config.access == DiskAccess::ReadWrite, files)?;
        check_size(config, base.access.size())?;
        let image = if config.access == DiskAccess::Ephemeral {
            image::unnamed_layer(base, dir).map_err(|source| BlockError::Layer {
                path: config.path.clone(),
                dir: dir.to_path_buf(),
                source,
            })?
        } else {
            base
        };
        Ok(Disk {
            id: config.id.clone(),
            image,
            path: config.path.clone(),
            format: config.format,
            backing: config.backing.clone(),
            access: config.access,
            counters: Arc::new(DiskCounters::new(&config.id)),
            limits: config.limits,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn counters(&self) -> &Arc<DiskCounters> {
        &self.counters
    }

    /// Returns the rate limits. The caller must enforce them.
    pub fn limits(&self) -> Option<DiskLimits> {
        self.limits
    }

    pub fn set_limits(&mut self, limits: Option<DiskLimits>) {
        self.limits = limits;
    }

    /// Returns the size in sectors. If an image ends within its last sector, the rest of the sector reads as zeroes.
    pub fn sectors(&self) -> u64 {
        self.image.access.size().div_ceil(SECTOR)
    }

    pub fn is_read_only(&self) -> bool {
        self.access == DiskAccess::ReadOnly
    }

    pub fn read(&self, buffers: &[VolatileSlice], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
        let length = vector.len();
        self.counters.read(length, self.image.access.readv(vector, offset))
    }

    /// Returns the file ranges that hold `length` bytes from `offset` on. They are valid until the next write to the
    /// disk. Returns `None` if some of the bytes are not in a file, or not stored verbatim.
    pub fn pieces(&self, offset: u64, length: u64) -> Option<Vec<FileExtent>> {
        let (mut pieces, mut done) = (Vec::with_capacity(1), 0);
        while done < length {
            let (mapping, mapped) = self.image.access.get_mapping(offset + done, length - done).ok()?;
            let Mapping::Raw { storage, offset, .. } = mapping else { return None };
            if mapped == 0 || storage.req_align() > 1 || storage.mem_align() > 1 {
                return None;
            }
            pieces.push(FileExtent { fd: storage.as_raw_fd(), offset, length: mapped });
            done += mapped;
        }
        Some(pieces)
    }

    pub fn was_read(&self, length: u64) -> io::Result<()> {
        self.counters.read(length, Ok(()))
    }

    /// Returns true if a write could free clusters for reuse, as in images with compressed or shared clusters.
    pub fn write_frees(&self, offset: u64, length: u64) -> bool {
        let mut done = 0;
        while done < length {
            match self.image.access.get_shallow_mapping(offset + done, length - done) {
                Ok((ShallowMapping::Raw { writable: false, .. } | ShallowMapping::Special { .. }, _)) | Err(_) => {
                    return true;
                }
                Ok((_, 0)) => break,
                Ok((_, mapped)) => done += mapped,
            }
        }
        false
    }

    pub fn write(&self, buffers: &[VolatileSlice], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers);
        let length = vector.len();
        self.counters.write(length, self.image.access.writev(vector, offset))
    }

    pub fn flush(&self) -> io::Result<()> {
        // An ephemeral disk is deleted with its VM and needs no durability.
        if self.access != DiskAccess::ReadWrite {
            return Ok(());
        }
        self.counters.other("flush", self.image.access.flush().and_then(|()| self.image.access.sync()))
    }

    /// Does the first half of a flush, and returns the file whose `fsync` is the second half. Returns `None` if the
    /// disk needs no flush, or if the first half failed. In that case, a full flush reports the error.
    pub fn begin_flush(&self) -> Option<RawFd> {
        let is_kept = self.access == DiskAccess::ReadWrite;
        (is_kept && self.image.access.flush().is_ok()).then(|| self.image.file.as_raw_fd())
    }

    pub fn was_flushed(&self, result: io::Result<()>) -> io::Result<()> {
        self.counters.other("flush", result)
    }

    /// Discards a range. Its contents are undefined afterwards.
    pub fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match self.image.access.discard_to_any(offset, length) {
            // A discard is advisory: if the file system cannot punch holes, it is ignored.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => self.counters.other("discard", result),
        }
    }

    /// Makes a range read as zeroes. With `unmap`, its space is freed if possible.
    pub fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let image = &mut self.image.access;
        // On a disk smaller than one full cluster, imago 0.2.6 zeroes everything or panics.
        if image.size() < LARGEST_CLUSTER {
            let result = image.write(vec![0; length as usize].as_slice(), offset);
            return self.counters.other("write-zeroes request", result);
        }
        let result = if unmap { image.discard_to_zero(offset, length) } else { image.write_zeroes(offset, length) };
        self.counters.other("write-zeroes request", result)
    }

    /// Grows the disk durably. The new bytes read as zeroes. Fails if `size` is smaller than the disk or not a multiple
    /// of the sector size, or if the disk is read-only.
    pub fn grow(&mut self, size: u64) -> Result<(), BlockError> {
        let present = self.image.access.size();
        if self.is_read_only() {
            return Err(BlockError::NotWritten(self.id.clone(), "grow"));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(BlockError::PartialSector(size));
        }
        if size < present {
            return Err(BlockError::Shrink { id: self.id.clone(), size, present });
        }
        let grown = self.image.access.resize_grow(size, PreallocateMode::None).and_then(|()| self.flush());
        grown.map_err(|source| BlockError::Host { id: self.id.clone(), what: "grow", source })
    }

    /// Returns a duplicate descriptor for write-back while the disk is in use, to shorten a later flush.
    pub fn file(&self) -> io::Result<File> {
        self.image.file.try_clone()
    }

    /// Switches to `layer`, a qcow2 overlay over the current file. Does nothing if the disk already uses it, because a
    /// client that was killed may retry. After an error the disk is unchanged.
    ///
    /// The current file is flushed and stays open read-only, because other VMs may share it from now on.
    pub fn switch(&mut self, layer: &Path, files: &FdTable) -> Result<(), BlockError> {
        if layer == self.path {
            return Ok(());
        }
        if self.access != DiskAccess::ReadWrite {
            return Err(BlockError::NotWritten(self.id.clone(), "switch to an overlay"));
        }
        let host = |source| BlockError::Host { id: self.id.clone(), what: "flush", source };
        self.flush().map_err(host)?;
        let present = BackingFile { path: self.path.clone(), format: self.format };
        let backing: Vec<BackingFile> = std::iter::once(present).chain(self.backing.iter().cloned()).collect();
        let base = image::open_unlocked(&self.path, self.format, &self.backing, files)?;
        let base_file = base.file.try_clone().map_err(host)?;
        if !image::is_same(&base_file, &self.image.file) {
            return Err(BlockError::NotOver { layer: layer.to_path_buf(), present: self.path.clone() });
        }
        let over = image::open_layer(layer, &backing, base, files)?;
        let (size, present) = (over.access.size(), self.image.access.size());
        if size < present {
            return Err(BlockError::SmallLayer { layer: layer.to_path_buf(), size, present });
        }
        // Downgrade the lock instead of releasing it: both descriptors then hold a lock against writers.
        lock(&self.image.file, &self.path, false)?;
        lock(&base_file, &self.path, false).inspect_err(|_| {
            // This descriptor held the lock until now, and no other process can have taken it since.
            let _ = lock(&self.image.file, &self.path, true);
        })?;
        self.image = over;
        self.backing = backing;
        self.path = layer.to_path_buf();
        self.format = DiskFormat::Qcow2;
        Ok(())
    }
}

/// Rejects an empty or oversized image, and a writable one that ends within a sector.
fn check_size(config: &DiskConfig, size: u64) -> Result<(), BlockError> {
    let path = config.path.clone();
    if size == 0 {
        return Err(BlockError::Empty(path));
    }
    let rounded = size.checked_next_multiple_of(SECTOR).ok_or(BlockError::PartialSector(size))?;
    match config.access {
        _ if rounded == size => Ok(()),
        DiskAccess::ReadWrite => Err(BlockError::PartialDisk { path, size, rounded }),
        DiskAccess::ReadOnly | DiskAccess::Ephemeral => {
            log::warn!("{}: padding the last sector with zeroes: the file ends at byte {size}", path.display());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn config(path: &Path, access: DiskAccess) -> DiskConfig {
        DiskConfig::new("disk", path.to_path_buf(), DiskFormat::Raw, access)
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
    fn ephemeral_disk_leaves_file_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let disk = Disk::open(&config(&path, DiskAccess::Ephemeral), dir.path()).unwrap();
        write(&disk, 4096, &mut [9; 512]);
        assert_eq!(read(&disk, 4096, 512), [9; 512]);
        assert_eq!(read(&disk, 4608, 512), [7; 512]);
        assert_eq!(read(&disk, (1 << 20) - 512, 512), [7; 512]);
        drop(disk);
        assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn writable_disk_cannot_be_opened_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![0; 4096]).unwrap();
        let _first = Disk::open(&config(&path, DiskAccess::ReadWrite), dir.path()).unwrap();
        for access in [DiskAccess::ReadWrite, DiskAccess::ReadOnly] {
            let second = Disk::open(&config(&path, access), dir.path());
            assert!(matches!(second, Err(BlockError::InUse(_))), "{access:?}");
        }
    }

    #[test]
    fn readers_share_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![0; 4096]).unwrap();
        let _first = Disk::open(&config(&path, DiskAccess::ReadOnly), dir.path()).unwrap();
        Disk::open(&config(&path, DiskAccess::Ephemeral), dir.path()).unwrap();
    }

    #[test]
    fn invalid_disk_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let open = |access, format| Disk::open(&DiskConfig { format, ..config(&path, access) }, dir.path());
        assert!(matches!(open(DiskAccess::ReadOnly, DiskFormat::Raw), Err(BlockError::Open { .. })));
        fs::write(&path, []).unwrap();
        assert!(matches!(open(DiskAccess::ReadOnly, DiskFormat::Raw), Err(BlockError::Empty(_))));
        fs::write(&path, [0; 100]).unwrap();
        assert!(matches!(open(DiskAccess::ReadOnly, DiskFormat::Qcow2), Err(BlockError::Format { .. })));
        let not_a_file = Disk::open(&config(dir.path(), DiskAccess::ReadOnly), dir.path());
        assert!(matches!(not_a_file, Err(BlockError::NotADisk(_))));
    }

    #[test]
    fn partial_sector_is_padded_and_refused_if_writable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![7; 3 * 512 + 100]).unwrap();
        for access in [DiskAccess::ReadOnly, DiskAccess::Ephemeral] {
            let disk = Disk::open(&config(&path, access), dir.path()).unwrap();
            assert_eq!(disk.sectors(), 4, "{access:?}");
            assert_eq!(read(&disk, 1024, 1024), [vec![7; 612], vec![0; 412]].concat(), "{access:?}");
        }
        let refused = Disk::open(&config(&path, DiskAccess::ReadWrite), dir.path());
        assert!(matches!(refused, Err(BlockError::PartialDisk { size: 1636, rounded: 2048, .. })), "{refused:?}");
        assert_eq!(fs::read(&path).unwrap(), vec![7; 3 * 512 + 100]);
    }

    fn writable_descriptors(path: &Path) -> usize {
        let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let is_writable = |entry: &fs::DirEntry| {
            let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            flags.is_some_and(|flags| i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_ACCMODE != libc::O_RDONLY)
        };
        entries
            .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
            .filter(is_writable)
            .count()
    }

    #[test]
    fn switch_closes_writable_descriptor_of_backing_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir_path = dir.path().canonicalize().unwrap();
        let (path, layer) = (dir_path.join("disk"), dir_path.join("layer"));
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mut disk = Disk::open(&config(&path, DiskAccess::ReadWrite), &dir_path).unwrap();
        assert!(writable_descriptors(&path) > 0);
        crate::image::tests::layer(&layer, "disk", "raw");
        disk.switch(&layer, &FdTable::default()).unwrap();
        write(&disk, 0, &mut [8; 512]);
        disk.flush().unwrap();
        assert_eq!(writable_descriptors(&path), 0);
        assert!(writable_descriptors(&layer) > 0);
        assert_eq!(read(&disk, 0, 1024), [[8; 512], [7; 512]].concat());
    }

    #[test]
    fn write_zeroes_stays_in_range_below_cluster_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![7; 32 << 10]).unwrap();
        let mut disk = Disk::open(&config(&path, DiskAccess::Ephemeral), dir.path()).unwrap();
        for (offset, unmap) in [(0, true), (1024, false)] {
            disk.write_zeroes(offset, 512, unmap).unwrap();
        }
        assert_eq!(read(&disk, 0, 2048), [[0; 512], [7; 512], [0; 512], [7; 512]].concat());
        assert_eq!(read(&disk, (32 << 10) - 512, 512), [7; 512]);
    }

    #[test]
    fn write_zeroes_and_discard_stay_in_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mut disk = Disk::open(&config(&path, DiskAccess::ReadWrite), dir.path()).unwrap();
        disk.write_zeroes(1024, 512, false).unwrap();
        disk.write_zeroes(8192, 8192, true).unwrap();
        disk.discard(32_768, 4096).unwrap();
        assert_eq!(read(&disk, 512, 1536), [[7; 512], [0; 512], [7; 512]].concat());
        assert_eq!(read(&disk, 8192, 8192), [0; 8192]);
        assert_eq!(read(&disk, 36_864, 512), [7; 512]);
    }
}
