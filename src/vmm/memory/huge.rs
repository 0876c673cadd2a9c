//! Huge pages for a machine that is about to be copied.
//!
//! While a machine is copied (fork(2)), its guest is paused. The kernel copies about 10,000 page table entries in a
//! millisecond, so the pause depends on their number. A huge page has one entry for 2 MiB.

use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, HUGE_PAGE, PAGE, PageRun, pages};

const PAGES_PER_BLOCK: u64 = HUGE_PAGE / PAGE;
/// With less private memory than this, the pages stay as they are: 16 MiB.
const MIN_PAGES: u64 = 4096;
/// A block with fewer private pages stays as it is, because a huge page would double its memory.
const MIN_PAGES_PER_BLOCK: u64 = PAGES_PER_BLOCK / 2;

/// Makes huge pages of the blocks of which most pages are private, while the guest is running. A block that the kernel
/// cannot convert, such as a part of a file's mapping, stays as it is.
pub fn collapse(memory: &GuestMemory) {
    let Ok(runs) = pages::changed(memory) else { return };
    if runs.iter().map(|run| run.count).sum::<u64>() < MIN_PAGES {
        return;
    }
    let mut first = 0;
    for region in memory.iter() {
        let count = region.len() / HUGE_PAGE;
        for blocks in dense_blocks(&runs, first / PAGES_PER_BLOCK, count) {
            // A call stops at the first block that it cannot convert.
            if !collapse_blocks(region.as_ptr(), &blocks) {
                for block in blocks {
                    collapse_blocks(region.as_ptr(), &(block..block + 1));
                }
            }
        }
        first += region.len() / PAGE;
    }
}

/// Returns the ranges of blocks to convert among the `count` blocks from `first`, counted from `first`.
fn dense_blocks(runs: &[PageRun], first: u64, count: u64) -> Vec<Range<u64>> {
    let mut private = vec![0; count as usize];
    for PageRun { first: page, count: pages } in runs {
        let end = page + pages;
        for block in page / PAGES_PER_BLOCK..end.div_ceil(PAGES_PER_BLOCK) {
            let Some(private) = block.checked_sub(first).and_then(|block| private.get_mut(block as usize)) else {
                continue;
            };
            let start = block * PAGES_PER_BLOCK;
            *private += end.min(start + PAGES_PER_BLOCK) - start.max(*page);
        }
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for block in (0..count).filter(|block| private[*block as usize] >= MIN_PAGES_PER_BLOCK) {
        match ranges.last_mut() {
            Some(last) if last.end == block => last.end = block + 1,
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}

/// Returns true if all blocks of the region at `region` have huge pages now.
fn collapse_blocks(region: *mut u8, blocks: &Range<u64>) -> bool {
    let (offset, length) = (blocks.start * HUGE_PAGE, (blocks.end - blocks.start) * HUGE_PAGE);
    let advise = |advice| {
        // SAFETY: the blocks are guest memory, which is mapped for the life of the process. The advice does not change
        // its content.
        unsafe { libc::madvise(region.add(offset as usize).cast(), length as usize, advice) == 0 }
    };
    advise(libc::MADV_HUGEPAGE) && advise(libc::MADV_COLLAPSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MIB, allocate, map_file};
    use std::fs;
    use vm_memory::{Bytes, GuestAddress};

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn blocks_with_few_private_pages_stay() {
        let runs = [run(0, 255), run(512, 256), run(1024 + 500, 524), run(4 * 512, 100), run(4 * 512 + 300, 156)];
        assert_eq!(dense_blocks(&runs, 0, 6), [1..2, 3..5]);
        assert_eq!(dense_blocks(&runs, 1, 6), [0..1, 2..4]);
        assert!(dense_blocks(&runs, 6, 10).is_empty());
    }

    /// Returns the bytes of `memory` that are in huge pages.
    fn huge_bytes(memory: &GuestMemory) -> u64 {
        let region = memory.iter().next().unwrap();
        let range = region.as_ptr() as usize..region.as_ptr() as usize + region.size();
        let (mut is_guest, mut huge) = (false, 0);
        for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let word = line.split_whitespace().nth(1);
            if let Some((Ok(start), _)) =
                line.split_once('-').map(|(start, rest)| (usize::from_str_radix(start, 16), rest))
            {
                is_guest = range.contains(&start);
            } else if is_guest && line.starts_with("AnonHugePages:") {
                huge += word.unwrap().parse::<u64>().unwrap() << 10;
            }
        }
        huge
    }

    #[test]
    fn written_memory_of_restored_machine_gets_huge_pages_and_keeps_its_content() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        let memory = allocate(64).unwrap();
        map_file(&memory, &file, None).unwrap();
        let content: Vec<u8> = (0..32 * MIB).map(|index| (index / PAGE) as u8 | 1).collect();
        memory.write_slice(&content, GuestAddress(8 * MIB)).unwrap();
        memory.write_obj(7_u8, GuestAddress(60 * MIB)).unwrap();
        assert_eq!(huge_bytes(&memory), 0);
        collapse(&memory);
        assert_eq!(huge_bytes(&memory), 32 * MIB);
        let mut after = vec![0; content.len()];
        memory.read_slice(&mut after, GuestAddress(8 * MIB)).unwrap();
        assert!(after == content);
        let runs = pages::changed(&memory).unwrap();
        assert_eq!(runs, [run(8 * MIB / PAGE, 32 * MIB / PAGE), run(60 * MIB / PAGE, 1)]);
    }

    #[test]
    fn little_memory_stays_in_small_pages() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        let memory = allocate(64).unwrap();
        map_file(&memory, &file, None).unwrap();
        memory.write_slice(&vec![1; 8 << 20], GuestAddress(8 * MIB)).unwrap();
        collapse(&memory);
        assert_eq!(huge_bytes(&memory), 0);
    }
}
