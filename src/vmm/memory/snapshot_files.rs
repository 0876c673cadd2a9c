//! Maps a snapshot's memory files over guest memory.
//!
//! Only blocks of 2 MiB with data are mapped. The others stay anonymous: a mapped hole would cost two pages when the
//! guest writes to it, one of them in the page cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{ACCESS, GuestMemory, HUGE_PAGE, MIB, MemoryError, PageRun};

/// Maps `file` privately over `memory`, which no guest has used yet. Then maps the page runs in `over` from a second
/// file. Pages are read on first access.
pub fn map_file(memory: &GuestMemory, file: &File, over: Option<(&File, &[PageRun])>) -> Result<(), MemoryError> {
    let size: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    for file in std::iter::once(file).chain(over.map(|(file, _)| file)) {
        let length = file.metadata().map_err(MemoryError::File)?.len();
        if length != size {
            let what = format!("its file is {length} bytes long, but the machine has {} MiB", size / MIB);
            return Err(MemoryError::File(io::Error::other(what)));
        }
    }
    let data = data_blocks(file, size).map_err(MemoryError::File)?;
    let mut offset = 0;
    for region in memory.iter() {
        let end = offset + region.len();
        // A huge page at the first write to it would cost each fork of a machine 2 MiB, where 4 KiB suffice.
        // SAFETY: advice on guest memory, which does not change its content. An error has no other effect.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_NOHUGEPAGE) };
        let map = |file: &File, part: Range<u64>| {
            let (place, length) = ((part.start - offset) as usize, (part.end - part.start) as usize);
            // SAFETY: the part is within the region, whose mapping lives as long as the process.
            unsafe { map_over(region.as_ptr().add(place), length, file.as_raw_fd(), part.start) }
        };
        for block in &data {
            let part = block.start.max(offset)..block.end.min(end);
            if part.start < part.end {
                map(file, part)?;
            }
        }
        for (file, run) in over.iter().flat_map(|(file, runs)| runs.iter().map(move |run| (*file, run.bytes()))) {
            if offset <= run.start && run.start < run.end && run.end <= end {
                map(file, run)?;
            }
        }
        offset = end;
    }
    Ok(())
}

/// Returns the ranges of the first `length` bytes that have data, in order, widened to whole blocks of 2 MiB.
fn data_blocks(file: &File, length: u64) -> io::Result<Vec<Range<u64>>> {
    let mut blocks: Vec<Range<u64>> = Vec::new();
    let mut position = 0;
    while position < length {
        let data = match seek(file, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?;
        let start = data / HUGE_PAGE * HUGE_PAGE;
        let end = hole.min(length).next_multiple_of(HUGE_PAGE).min(length);
        if end <= position {
            break;
        }
        match blocks.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => blocks.push(start..end),
        }
        position = end;
    }
    Ok(blocks)
}

/// # Safety
/// The `length` bytes at `address` must be guest memory.
unsafe fn map_over(address: *mut u8, length: usize, fd: RawFd, offset: u64) -> Result<(), MemoryError> {
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: by this function's contract, it replaces only guest memory, to which the VMM has no references.
    let mapped = unsafe { libc::mmap(address.cast(), length, ACCESS, flags, fd, offset as libc::off_t) };
    if mapped == libc::MAP_FAILED {
        return Err(MemoryError::File(io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PAGE, allocate, pages};
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestAddress};

    fn sparse_file(size: u64, data: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        data.iter().for_each(|(place, value)| file.write_all_at(&[*value; PAGE as usize], *place).unwrap());
        file
    }

    #[test]
    fn blocks_with_data_are_whole_and_merged() {
        const BLOCK: u64 = HUGE_PAGE;
        let file = sparse_file(11 * MIB, &[(BLOCK + PAGE, 1), (2 * BLOCK, 1), (3 * BLOCK - PAGE, 1), (10 * MIB, 1)]);
        assert_eq!(data_blocks(&file, 11 * MIB).unwrap(), [BLOCK..3 * BLOCK, 10 * MIB..11 * MIB]);
        assert!(data_blocks(&sparse_file(4 * MIB, &[]), 4 * MIB).unwrap().is_empty());
        let full = sparse_file(0, &[]);
        full.write_all_at(&vec![1; 5 << 20], 0).unwrap();
        assert_eq!(data_blocks(&full, 5 * MIB).unwrap(), std::slice::from_ref(&(0..5 * MIB)));
    }

    #[test]
    fn mapped_memory_equals_both_files() {
        let base = sparse_file(64 * MIB, &[(0, 1), (8 * MIB, 2), (63 * MIB, 3)]);
        let changed = sparse_file(64 * MIB, &[(8 * MIB, 4), (32 * MIB, 5)]);
        let runs = [8 * MIB, 32 * MIB].map(|place| PageRun { first: place / PAGE, count: 1 });
        let memory = allocate(64).unwrap();
        map_file(&memory, &base, Some((&changed, &runs))).unwrap();
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        let places = [0, PAGE, 8 * MIB, 8 * MIB + PAGE, 16 * MIB, 32 * MIB, 32 * MIB + PAGE, 63 * MIB];
        assert_eq!(places.map(byte), [1, 0, 4, 0, 0, 5, 0, 3]);
    }

    #[test]
    fn write_to_hole_is_a_change_of_one_page() {
        let file = sparse_file(64 * MIB, &[(0, 1)]);
        let memory = allocate(64).unwrap();
        map_file(&memory, &file, None).unwrap();
        memory.write_obj(7_u8, GuestAddress(32 * MIB)).unwrap();
        assert_eq!(pages::changed(&memory).unwrap(), [PageRun { first: 32 * MIB / PAGE, count: 1 }]);
        let mut byte = [1];
        file.read_exact_at(&mut byte, 32 * MIB).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn memory_above_the_gap_is_mapped_at_its_offset() {
        let file = sparse_file(3080 * MIB, &[(3072 * MIB - PAGE, 1), (3072 * MIB, 2)]);
        let memory = allocate(3080).unwrap();
        map_file(&memory, &file, None).unwrap();
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!([byte(0xbfff_f000), byte(0x1_0000_0000), byte(0x1_0020_0000)], [1, 2, 0]);
    }

    #[test]
    fn file_of_other_size_is_refused() {
        let error = map_file(&allocate(64).unwrap(), &sparse_file(63 * MIB, &[]), None).unwrap_err();
        assert!(error.to_string().ends_with("its file is 66060288 bytes long, but the machine has 64 MiB"), "{error}");
    }
}
