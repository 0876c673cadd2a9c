//! Which pages of guest memory this process has made its own (`/proc/self/pagemap`, Documentation/admin-guide/mm/pagemap.rst
//! of Linux): of memory mapped privately from a file, those that differ from it; of other memory, those that were touched.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;

/// The size of a page, in bytes.
pub const PAGE: u64 = 4096;

/// Entries of the page map that are read at a time.
const BATCH: u64 = 1 << 16;
/// An entry's bits: the page is in RAM, is swapped out, or is a file's.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// Runs with fewer pages than these between them are one: a run costs more than a page.
const GAP: u64 = 8;

/// Pages in a row. They are counted over all of the machine's memory, one range after another, without the gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl PageRun {
    /// Where they are in a file with all of the memory.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.first * PAGE..(self.first + self.count) * PAGE
    }

    fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// The pages of `memory` that are this process's own, in order; no run lies in two ranges.
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

/// The pages that are in one or the other, of runs as [`changed`] gives them.
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
