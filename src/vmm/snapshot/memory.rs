//! Guest memory in a file: sparse, without the pages that are zero, and mapped again so that a machine pays for what it
//! touches.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::SnapshotError;
use crate::vmm::memory::GuestMemory;
use crate::vmm::sparse::write_blocks;

/// What a thread takes at a time.
const CHUNK: usize = 4 << 20;
/// Threads that write: more have the host's disk do no more.
const THREADS: usize = 4;

/// Writes all of `memory`, whose vCPUs and devices are paused, to the new file at `path`.
pub fn write(memory: &GuestMemory, path: &Path) -> Result<(), SnapshotError> {
    let failed = SnapshotError::file(path, "written");
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(&failed)?;
    let total: u64 = memory.iter().map(|region| region.len()).sum();
    file.set_len(total).map_err(&failed)?;
    let mut chunks: Vec<(GuestAddress, u64, usize)> = Vec::new();
    let mut offset = 0;
    for region in memory.iter() {
        for start in (0..region.len()).step_by(CHUNK) {
            let length = (region.len() - start).min(CHUNK as u64);
            chunks.push((GuestAddress(region.start_addr().0 + start), offset + start, length as usize));
        }
        offset += region.len();
    }
    let write_every = |first: usize| -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        for (address, offset, length) in chunks.iter().skip(first).step_by(THREADS) {
            let bytes = &mut buffer[..*length];
            memory.read_slice(bytes, *address).map_err(io::Error::other)?;
            write_blocks(&file, *offset, bytes)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || write_every(first))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a panic"))))
    })
    .map_err(&failed)?;
    file.sync_all().map_err(&failed)
}
/// A copy of guest memory as it was at one moment, that is being written while the guest goes on.
///
/// It is a copy of this process (fork(2)): the two share their pages until either writes to one. The child does nothing but
/// write, and only calls what may be called in the child of a process with threads (signal-safety(7)).
#[derive(Debug)]
pub struct Copy {
    child: libc::pid_t,
    file: File,
    path: PathBuf,
}

impl Copy {
    /// Begins to write `memory`, whose vCPUs and devices are paused until this returns, to the new file at `path`.
    pub fn begin(memory: &GuestMemory, path: &Path) -> Result<Copy, SnapshotError> {
        let failed = SnapshotError::file(path, "written");
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(&failed)?;
        file.set_len(memory.iter().map(|region| region.len()).sum()).map_err(&failed)?;
        let regions: Vec<(*const u8, usize)> =
            memory.iter().map(|region| (region.as_ptr().cast_const(), region.len() as usize)).collect();
        // SAFETY: the child only calls `write_regions`, which allocates nothing and takes no lock, and _exit.
        let child = unsafe { libc::fork() };
        match child {
            -1 => Err(failed(io::Error::last_os_error())),
            0 => {
                let code = match write_regions(&file, &regions) {
                    Ok(()) => 0,
                    Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
                };
                // SAFETY: it ends this process, which is a copy that has nothing to put in order.
                unsafe { libc::_exit(code) }
            }
            child => Ok(Copy { child, file, path: path.to_path_buf() }),
        }
    }

    /// Waits until all is written and durable.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        let failed = SnapshotError::file(&self.path, "written");
        match self.wait() {
            0 => self.file.sync_all().map_err(failed),
            code => Err(failed(io::Error::from_raw_os_error(code))),
        }
    }

    /// Waits for the child, and returns its exit code: the number of an error.
    fn wait(&mut self) -> i32 {
        let child = std::mem::replace(&mut self.child, 0);
        let mut status = 0;
        // SAFETY: the child is this process's own, and is waited for once.
        while child != 0 && unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return error.raw_os_error().unwrap_or(libc::EIO);
            }
        }
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EIO }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.child != 0 {
            // SAFETY: the child is this process's own, and was not waited for.
            unsafe { libc::kill(self.child, libc::SIGKILL) };
            self.wait();
        }
    }
}

/// Writes all pages of `regions` that are not zero.
fn write_regions(file: &File, regions: &[(*const u8, usize)]) -> io::Result<()> {
    // What the other process has open is its own: its sockets' and locks' ends must not depend on this one.
    let fd = file.as_raw_fd() as u32;
    // SAFETY: these calls take numbers; descriptors below 3 are the standard streams.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, fd - 1, 0_u32);
        libc::syscall(libc::SYS_close_range, fd + 1, u32::MAX, 0_u32);
    }
    let mut offset = 0;
    for (start, length) in regions {
        // SAFETY: the region is mapped in this process, and nobody writes to this process's copy.
        let bytes = unsafe { std::slice::from_raw_parts(*start, *length) };
        write_blocks(file, offset, bytes)?;
        offset += *length as u64;
    }
    Ok(())
}
