//! Finds the private pages of guest memory (`/proc/self/pagemap`, Linux's Documentation/admin-guide/mm/pagemap.rst):
//! those written since a snapshot file was mapped or, without a file, all that were touched.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;

pub const PAGE: u64 = 4096;

/// The number of pagemap entries to read at a time.
const BATCH: u64 = 1 << 16;
/// Bits of an entry: the page is present, is swapped out, or is a page of a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// Runs separated by fewer pages than this are merged, because an extra run costs more than saving a few extra pages.
const GAP: u64 = 8;

/// Consecutive pages of guest memory. Page numbers skip the MMIO gap, as do the offsets in a memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    pub first: u64,
    pub count: u64,
}

impl PageRun {
    /// Returns the run's byte range in a file that contains all guest memory.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.first * PAGE..(self.first + self.count) * PAGE
    }

    fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// Returns the private pages of `memory` in order, merged across small gaps. No run spans two memory ranges.
pub fn changed(memory: &GuestMemory) -> io::Result<Vec<PageRun>> {
    let map = File::open("/proc/self/pagemap")?;
    let mut runs: Vec<PageRun> = Vec::new();
    let mut entries = vec![0; BATCH as usize * 8];
    let mut start = 0;
    for region in memory.iter() {
        let (address, count) = (region.as_ptr() as u64 / PAGE, region.len() / PAGE);
        let mut last: Option<PageRun> = None;
        for first in (0..count).step_by(BATCH as usize) {
            let bytes = &mut entries[..(count - first).min(BATCH) as usize * 8];
            map.read_exact_at(bytes, (address + first) * 8)?;
            for (page, entry) in (start + first..).zip(bytes.chunks_exact(8)) {
                let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
                if entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
                    continue;
                }
                match &mut last {
                    Some(run) if page < run.end() + GAP => run.count = page + 1 - run.first,
                    _ => runs.extend(last.replace(PageRun { first: page, count: 1 })),
                }
            }
        }
        runs.extend(last);
        start += count;
    }
    Ok(runs)
}

/// Returns the union of two sets of runs from [`changed`], merged in the same way.
pub fn join(memory: &GuestMemory, one: Vec<PageRun>, other: &[PageRun]) -> Vec<PageRun> {
    let mut start = 0;
    let begins: Vec<u64> = memory
        .iter()
        .map(|region| {
            start += region.len() / PAGE;
            start - region.len() / PAGE
        })
        .collect();
    let mut all = one;
    all.extend(other);
    all.sort_by_key(|run| run.first);
    let mut joined: Vec<PageRun> = Vec::with_capacity(all.len());
    for run in all {
        match joined.last_mut() {
            Some(last) if run.first < last.end() + GAP && !begins.contains(&run.first) => {
                last.count = last.end().max(run.end()) - last.first;
            }
            _ => joined.push(run),
        }
    }
    joined
}
