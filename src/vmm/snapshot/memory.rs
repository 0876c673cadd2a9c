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

/// The part of a machine's memory that is written to the file.
#[derive(Debug)]
pub struct Content {
    pub(super) pieces: Vec<MemoryExtent>,
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

// SAFETY: guest memory is mapped for the life of the process, and the machine is paused while threads read a piece.
unsafe impl Sync for MemoryExtent {}

impl Content {
    /// Selects the pages changed since the restore, if saving only those is possible and cheaper. Otherwise selects all
    /// pages or, if the machine was not restored, those that have been touched. While the machine runs, more and more
    /// pages change, so the content of an earlier instant is included, unless the balloon releases pages meanwhile.
    pub fn of(memory: &GuestMemory, origin: Option<&Origin>, dir: &Path) -> io::Result<Content> {
        let differences = origin.and_then(|origin| origin.differences(memory, dir));
        if differences.is_none() {
            ignore_not_found(fs::remove_file(dir.join(BASE)))?;
        }
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
        Ok(Content { pieces, differences })
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
pub(super) fn create(memory: &GuestMemory, dir: &Path) -> io::Result<File> {
    ignore_not_found(fs::remove_file(dir.join(MEMORY)))?;
    let file = File::options().write(true).create_new(true).mode(0o400).open(dir.join(MEMORY))?;
    file.set_len(memory.iter().map(GuestMemoryRegion::len).sum())?;
    Ok(file)
}

/// Writes the memory of a machine that stays paused. The file is complete and durable when this returns. Returns the
/// part that the file contains if it is not all memory.
pub fn write(
    memory: &GuestMemory,
    origin: Option<&Origin>,
    dir: &Path,
    cancellation: &Cancellation,
) -> Result<Option<Differences>, SnapshotError> {
    let failed = SnapshotError::file(&dir.join(MEMORY), "write");
    let file = create(memory, dir).map_err(&failed)?;
    let content = Content::of(memory, origin, dir).map_err(&failed)?;
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
    file.sync_all().map_err(&failed)?;
    Ok(content.differences)
}

impl MemoryExtent {
    /// The size of [`MemoryExtent::to_bytes`].
    pub(super) const SIZE: usize = 24;

    /// Encodes the extent for a copy of this process, in which the memory has the same address.
    pub(super) fn to_bytes(self) -> [u8; Self::SIZE] {
        let words = [self.start as u64, self.length as u64, self.offset];
        let mut bytes = [0; Self::SIZE];
        bytes.chunks_exact_mut(8).zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_ne_bytes()));
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Self::SIZE]) -> MemoryExtent {
        let [start, length, offset] =
            [0, 8, 16].map(|at| u64::from_ne_bytes(std::array::from_fn(|index| bytes[at + index])));
        MemoryExtent { start: start as *const u8, length: length as usize, offset }
    }

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
        let differences = write(&memory, None, dir.path(), &Cancellation::default()).unwrap();
        assert!(differences.is_none());
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
        let cancellation = Cancellation::default();
        cancellation.cancel();
        let error = write(&memory, None, dir.path(), &cancellation).unwrap_err();
        assert!(error.to_string().ends_with("memory: the machine is being stopped"), "{error}");
    }

    #[test]
    fn extent_equals_its_encoded_copy() {
        let extent = MemoryExtent { start: 0x7000_1234_5000 as *const u8, length: 3 << 30, offset: u64::MAX - 1 };
        let copy = MemoryExtent::from_bytes(&extent.to_bytes());
        assert_eq!((copy.start, copy.length, copy.offset), (extent.start, extent.length, extent.offset));
    }
}
