//! Guest memory in a file: sparse, without the pages that are zero, and mapped again so that a machine pays for what it
//! touches.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
