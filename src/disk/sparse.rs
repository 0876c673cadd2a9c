//! Sparse files: holes instead of blocks of zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The granularity of holes: a page, and a block of most file systems.
pub const BLOCK: usize = 4 << 10;

/// Writes the blocks of `bytes` that are not zero. It skips the others, so `destination` must have holes there.
pub fn write_blocks(destination: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    data_runs(bytes).try_for_each(|run| destination.write_all_at(&bytes[run.clone()], offset + run.start as u64))
}

/// Returns the ranges of blocks that are not zero.
pub fn data_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[start..];
        let skipped: usize = rest.chunks(BLOCK).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        let run: usize = rest[skipped..].chunks(BLOCK).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        let data = start + skipped;
        start = data + run;
        (run > 0).then_some(data..start)
    })
}
