//! Writes guest memory to a sparse file, without zero pages. For a restored machine, the file may have only the pages
//! that have changed since the restore.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::SnapshotError;
use super::cancellation::Cancellation;
use super::origin::{Differences, Origin};
use crate::memory::{GuestMemory, PAGE, PageRun, pages};
use disk::sparse::write_blocks;
use machine::fs::ignore_not_found;
use machine::snapshot_files::{BASE, MEMORY};

/// The number of bytes that a thread writes at a time.
const CHUNK: usize = 4 << 20;
/// More threads would not increase disk throughput.
const THREADS: usize = 4;

/// The part of a paused machine's memory that is written to the file.
#[derive(Debug)]
pub struct Content {
    pub(super) pieces: Vec<MemoryExtent>,
    /// The size of the machine's memory in bytes.
    pub(super) length: u64,
    /// Set if the file has only the pages that differ from a base snapshot.
    pub differences: Option<Differences>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryExtent {
    start: *const u8,
    length: usize,
    /// The offset in the memory file in bytes.
    offset: u64,
}

// SAFETY: guest memory is mapped for the life of the process, and the machine is paused while a piece is read.
unsafe impl Sync for MemoryExtent {}

impl Content {
    /// Selects the pages changed since the restore, if saving only those is possible and cheaper. Otherwise selects all
    /// pages or, if the machine was not restored, those that have been touched.
    pub fn of(memory: &GuestMemory, origin: Option<&Origin>, dir: &Path) -> Content {
        let differences = origin.and_then(|origin| origin.differences(memory, dir));
        let runs = match (&differences, origin) {
            (Some(differences), _) => differences.runs.clone(),
            // If the kernel does not report touched pages, select all pages.
            (None, None) => pages::changed(memory).unwrap_or_else(|_| all(memory)),
            (None, Some(_)) => all(memory),
        };
        let mut pieces = Vec::with_capacity(runs.len());
        let mut start = 0;
        for region in memory.iter() {
            let end = start + region.len();
            let within = runs.iter().map(PageRun::bytes).filter(|run| start <= run.start && run.end <= end);
            pieces.extend(within.map(|run| MemoryExtent {
                // The run is within the region.
                start: region.as_ptr().wrapping_add((run.start - start) as usize).cast_const(),
                length: (run.end - run.start) as usize,
                offset: run.start,
            }));
            start = end;
        }
        Content { pieces, length: start, differences }
    }
}

/// Returns all pages, as one run for each memory range.
fn all(memory: &GuestMemory) -> Vec<PageRun> {
    let mut first = 0;
    let run = |count| {
        first += count;
        PageRun { first: first - count, count }
    };
    memory.iter().map(|region| region.len() / PAGE).map(run).collect()
}

/// Creates the memory file. Replaces an existing file rather than overwriting it, because it may be mapped. The
/// complete file is never modified, because several machines may be restored from it.
pub(super) fn create(content: &Content, dir: &Path) -> io::Result<File> {
    let stale = if content.differences.is_some() { &[MEMORY][..] } else { &[MEMORY, BASE] };
    for name in stale {
        ignore_not_found(fs::remove_file(dir.join(name)))?;
    }
    let file = File::options().write(true).create_new(true).mode(0o400).open(dir.join(MEMORY))?;
    file.set_len(content.length)?;
    Ok(file)
}

/// Writes `content` of a machine that stays paused. The file is complete and durable when this returns.
pub fn write(content: &Content, dir: &Path, cancellation: &Cancellation) -> Result<(), SnapshotError> {
    let failed = SnapshotError::file(&dir.join(MEMORY), "write");
    let file = create(content, dir).map_err(&failed)?;
    let chunks: Vec<MemoryExtent> = content.pieces.iter().flat_map(MemoryExtent::chunks).collect();
    let write = |chunk: &MemoryExtent| cancellation.check().and_then(|()| chunk.write(&file));
    let write_every = |first: usize| chunks.iter().skip(first).step_by(THREADS).try_for_each(write);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                scope.spawn({
                    let write_every = &write_every;
                    move || write_every(first)
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
    })
    .map_err(&failed)?;
    file.sync_all().map_err(&failed)
}

impl MemoryExtent {
    /// Splits the extent into extents of at most [`CHUNK`] bytes.
    fn chunks(&self) -> impl Iterator<Item = MemoryExtent> + use<> {
        let MemoryExtent { start, length, offset } = *self;
        (0..length).step_by(CHUNK).map(move |done| MemoryExtent {
            start: start.wrapping_add(done),
            length: (length - done).min(CHUNK),
            offset: offset + done as u64,
        })
    }

    /// Writes the pages that are not zero. Allocates nothing and takes no lock.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        // SAFETY: guest memory is mapped for the life of the process. Nothing writes to it while the machine is paused,
        // or in a forked copy of the process.
        let bytes = unsafe { std::slice::from_raw_parts(self.start, self.length) };
        write_blocks(file, self.offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn only_touched_pages_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let memory = allocate(4096).unwrap();
        let places = [(0x1000, 0x1000_u64), (0xbfff_f000, 0xbfff_f000), (0x1_0000_0000, 0xc000_0000)];
        for (address, _) in places {
            memory.write_obj(address, GuestAddress(address)).unwrap();
        }
        let content = Content::of(&memory, None, dir.path());
        assert!(content.differences.is_none());
        write(&content, dir.path(), &Cancellation::default()).unwrap();
        let file = File::open(dir.path().join(MEMORY)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 << 30);
        for (address, offset) in places {
            let mut bytes = [0; 8];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), address);
        }
        let allocated = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!((3 * PAGE..=64 << 10).contains(&allocated), "{allocated} bytes for three pages");
    }

    #[test]
    fn canceled_write_fails() {
        let dir = tempfile::tempdir().unwrap();
        let memory = allocate(64).unwrap();
        memory.write_obj(1_u8, GuestAddress(0x1000)).unwrap();
        let content = Content::of(&memory, None, dir.path());
        let cancellation = Cancellation::default();
        cancellation.cancel();
        let error = write(&content, dir.path(), &cancellation).unwrap_err();
        assert!(error.to_string().ends_with("memory: the machine is being stopped"), "{error}");
    }
}
