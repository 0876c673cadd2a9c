//! Memory that is there: each of its pages was written.
//!
//! Getting memory from a guest's kernel can take longer than to use it, where that kernel is emulated. So it is in huge pages
//! where the kernel has them, and of what is asked for there is as much as comes in a given time.

use std::io;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// A huge page.
pub const STEP: usize = 2 << 20;
/// How long getting memory may take.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Pages of this process's own, aligned to a huge one.
pub struct Memory {
    start: NonNull<u64>,
    mapped: usize,
    usable: usize,
}

impl Memory {
    /// As much of `most` bytes as comes in time, and at least `least` of them.
    pub fn get(least: usize, most: u64) -> Result<Memory, String> {
        let most = usize::try_from(most).map_err(|_| format!("{most} bytes do not fit"))?;
        let most = most.max(least).div_ceil(STEP) * STEP;
        // One step more, so that the start can be where a huge page may be.
        let mapped = most + STEP;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever the kernel has room.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        let start = NonNull::new(address).filter(|_| address != libc::MAP_FAILED);
        let start = start.ok_or_else(|| format!("no memory: {}", io::Error::last_os_error()))?.cast::<u64>();
        let mut memory = Memory { start, mapped, usable: 0 };
        memory.touch(least.max(1), most);
        Ok(memory)
    }

    fn touch(&mut self, least: usize, most: usize) {
        // SAFETY: the range is the mapping's own. A kernel without huge pages says no, and nothing is lost.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.mapped, libc::MADV_HUGEPAGE) };
        let began = Instant::now();
        while self.usable < most && (self.usable < least || began.elapsed() < PATIENCE) {
            self.usable += STEP;
            let from = (self.usable - STEP) / size_of::<u64>();
            self.words()[from..].chunks_mut(4096 / size_of::<u64>()).for_each(|page| page[0] = 1);
        }
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.usable
    }

    /// All of them.
    pub fn words(&mut self) -> &mut [u64] {
        let offset = self.start.as_ptr().cast::<u8>().align_offset(STEP);
        // SAFETY: `offset` is below a step, by which the mapping is longer than what is usable of it; the mapping is this
        // value's own, zero at first, and lives as long as it does.
        unsafe {
            let start = self.start.as_ptr().cast::<u8>().add(offset).cast::<u64>();
            std::slice::from_raw_parts_mut(start, self.usable / size_of::<u64>())
        }
    }

    /// `length` bytes from `from` on.
    pub fn piece(&mut self, from: usize, length: usize) -> &mut [u8] {
        let words = self.words();
        // SAFETY: words are bytes, eight each, of any value.
        let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size_of_val(words)) };
        &mut bytes[from..from + length]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_there_and_on_a_huge_page_s_boundary() {
        let mut memory = Memory::get(STEP + 1, 0).unwrap();
        assert!(memory.bytes() == 2 * STEP && memory.words().as_ptr().cast::<u8>().align_offset(STEP) == 0);
        assert_eq!(memory.piece(STEP, 4)[0], 1);
    }
}
