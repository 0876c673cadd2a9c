//! Pairs imago's image file with its descriptor, so that ranges mapped directly to the file can be read without imago.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};

#[derive(Debug)]
pub struct ImageFile {
    /// Owns the descriptor and keeps it open.
    inner: imago::file::File,
    fd: RawFd,
}

impl ImageFile {
    pub(super) fn new(file: File, path: &Path, writable: bool) -> io::Result<ImageFile> {
        let options = StorageOpenOptions::new().write(writable).filename(path);
        let fd = file.as_raw_fd();
        Ok(ImageFile { inner: imago::file::File::from_open_file(file, options)?, fd })
    }
}

impl TryFrom<File> for ImageFile {
    type Error = io::Error;

    fn try_from(file: File) -> io::Result<ImageFile> {
        let fd = file.as_raw_fd();
        Ok(ImageFile { inner: file.try_into()?, fd })
    }
}

impl AsRawFd for ImageFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Storage for ImageFile {
    fn mem_align(&self) -> usize {
        self.inner.mem_align()
    }

    fn req_align(&self) -> usize {
        self.inner.req_align()
    }

    fn zero_align(&self) -> usize {
        self.inner.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.inner.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.inner.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.inner.get_filename()
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller upholds this contract, which is the same as that of the inner function.
        unsafe { self.inner.pure_readv(buffers, offset) }
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_writev(buffers, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn settle_writes(&self) -> io::Result<()> {
        self.inner.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.inner.get_storage_helper()
    }

    fn resize(&self, size: u64, preallocation: PreallocateMode) -> io::Result<()> {
        self.inner.resize(size, preallocation)
    }
}
