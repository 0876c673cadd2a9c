//! Files that have holes where they would be zero.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is left out if it is zero: a page, and a block of most file systems.
pub const BLOCK: usize = 4 << 10;

/// Writes the blocks of `bytes` that are not zero; `destination` has holes there.
pub fn write_blocks(destination: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut start = 0;
    while start < bytes.len() {
        let rest = &bytes[start..];
        let skipped: usize = rest.chunks(BLOCK).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        let run: usize = rest[skipped..].chunks(BLOCK).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        let data = start + skipped;
        destination.write_all_at(&bytes[data..data + run], offset + data as u64)?;
        start = data + run;
    }
    Ok(())
}
