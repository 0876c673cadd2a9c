//! I/O vectors that mix guest memory and host memory in one system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Maximum number of vectors per system call (Linux's `IOV_MAX`).
const MAX: usize = 1024;

/// I/O vectors, valid for as long as their sources are borrowed.
#[derive(Debug, Default)]
pub struct IoVecs<'a> {
    pieces: Vec<libc::iovec>,
    length: usize,
    borrowed: std::marker::PhantomData<&'a mut [u8]>,
}

impl<'a> IoVecs<'a> {
    /// Appends host memory that system calls must only read.
    pub fn push_source(&mut self, bytes: &'a [u8]) {
        self.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    pub fn push_target(&mut self, bytes: &'a mut [u8]) {
        self.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Appends guest memory, which the guest may change at any time.
    pub fn extend_guest(&mut self, slices: &[VolatileSlice<'a>]) {
        for slice in slices {
            self.push(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
    }

    fn push(&mut self, base: *mut u8, length: usize) {
        if length > 0 {
            self.pieces.push(libc::iovec { iov_base: base.cast(), iov_len: length });
            self.length += length;
        }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns true if the pieces fit into one system call.
    pub fn fit(&self) -> bool {
        self.pieces.len() <= MAX
    }

    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Reads from `fd` into the first [`MAX`] pieces. All pieces must be targets. They may overlap.
    pub fn read_from(&self, fd: BorrowedFd) -> io::Result<usize> {
        let count = self.pieces.len().min(MAX);
        // SAFETY: the pieces are valid for the call and writable, as the type promises for targets. They are raw
        // pointers, so overlapping guest buffers never create two references to the same byte.
        let read = unsafe { libc::readv(fd.as_raw_fd(), self.pieces.as_ptr(), count as libc::c_int) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Copies the first `length` bytes, or all bytes if there are fewer.
    pub fn first(&self, length: usize) -> Vec<u8> {
        let mut part = IoVecs::default();
        for piece in &self.pieces {
            let left = length - part.length;
            part.push(piece.iov_base.cast(), piece.iov_len.min(left));
        }
        part.copy_from(0)
    }

    pub fn copy_from(&self, skip: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.length.saturating_sub(skip)];
        let (mut skip, mut done) = (skip, 0);
        for piece in &self.pieces {
            let skipped = skip.min(piece.iov_len);
            skip -= skipped;
            let count = piece.iov_len - skipped;
            // SAFETY: the piece is valid for reads: it is borrowed, or guest memory, which stays mapped for the life of
            // the process. If the guest changes it concurrently, some bytes are old and some are new. `bytes` has room
            // for all pieces after the skipped bytes, and nothing else refers to it.
            unsafe {
                let from = piece.iov_base.cast::<u8>().add(skipped);
                std::ptr::copy(from, bytes.as_mut_ptr().add(done), count);
            }
            done += count;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_from_fills_overlapping_and_excess_pieces() {
        use std::io::Write;
        use std::os::fd::AsFd;
        use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
        let memory = crate::memory::allocate(64).unwrap();
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        far.write_all(&[7; 4096]).unwrap();
        let slice = || memory.get_slice(GuestAddress(0x10_0000), 2).unwrap();
        let mut pieces = IoVecs::default();
        let same: Vec<_> = (0..MAX + 100).map(|_| slice()).collect();
        pieces.extend_guest(&same);
        assert!(!pieces.fit());
        assert_eq!(pieces.read_from(near.as_fd()).unwrap(), 2 * MAX);
        assert_eq!(memory.read_obj::<[u8; 3]>(GuestAddress(0x10_0000)).unwrap(), [7, 7, 0]);
    }

    #[test]
    fn copy_from_skips_leading_bytes() {
        let (first, second) = ([1, 2, 3], [4, 5]);
        let mut pieces = IoVecs::default();
        pieces.push_source(&first);
        pieces.push_source(&[]);
        pieces.push_source(&second);
        assert_eq!((pieces.length(), pieces.as_slice().len()), (5, 2));
        assert_eq!(pieces.copy_from(0), [1, 2, 3, 4, 5]);
        assert_eq!(pieces.copy_from(2), [3, 4, 5]);
        assert_eq!(pieces.copy_from(4), [5]);
        assert!(pieces.copy_from(9).is_empty());
        assert_eq!((pieces.first(4), pieces.first(9)), (vec![1, 2, 3, 4], vec![1, 2, 3, 4, 5]));
    }
}
