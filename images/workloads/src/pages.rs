//! Allocated memory, with all pages written once.
//!
//! If the guest's kernel is emulated, allocating memory can take longer than using it. So the memory consists of huge
//! pages, if possible, and is as large as the allocation time allows.

use std::io;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Size of a huge page.
pub const STEP: usize = 2 << 20;
/// Maximum time to allocate memory.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A private mapping, aligned to a huge page.
pub struct Memory {
    start: NonNull<u64>,
    mapped: usize,
    usable: usize,
}

impl Memory {
    /// Allocates as much of `most` bytes as the time allows, and at least `least` bytes.
    pub fn get(least: usize, most: u64) -> Result<Memory, String> {
        let most = usize::try_from(most).map_err(|_| format!("{most} bytes exceed the address space"))?;
        let most = most.max(least).div_ceil(STEP) * STEP;
        // Map one huge page more, so that the start can be aligned to a huge page.
        let mapped = most + STEP;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        let start = NonNull::new(address).filter(|_| address != libc::MAP_FAILED);
        let start =
            start.ok_or_else(|| format!("cannot allocate memory: {}", io::Error::last_os_error()))?.cast::<u64>();
        let mut memory = Memory { start, mapped, usable: 0 };
        memory.touch(least.max(1), most);
        Ok(memory)
    }

    fn touch(&mut self, least: usize, most: usize) {
        // SAFETY: this value owns the range. A kernel without huge pages returns an error, which is harmless.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.mapped, libc::MADV_HUGEPAGE) };
        let began = Instant::now();
        while self.usable < most && (self.usable < least || began.elapsed() < PATIENCE) {
            self.usable += STEP;
            let from = (self.usable - STEP) / size_of::<u64>();
            self.words()[from..].chunks_mut(4096 / size_of::<u64>()).for_each(|page| page[0] = 1);
        }
    }

    pub fn bytes(&self) -> usize {
        self.usable
    }

    pub fn words(&mut self) -> &mut [u64] {
        let offset = self.start.as_ptr().cast::<u8>().align_offset(STEP);
        // SAFETY: `offset` is below a step, and the mapping is a step longer than its usable part. This value owns the
        // mapping, which is zero at first and lives as long as the value.
        unsafe {
            let start = self.start.as_ptr().cast::<u8>().add(offset).cast::<u64>();
            std::slice::from_raw_parts_mut(start, self.usable / size_of::<u64>())
        }
    }

    pub fn piece(&mut self, from: usize, length: usize) -> &mut [u8] {
        let words = self.words();
        // SAFETY: a word is eight bytes, of any value.
        let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size_of_val(words)) };
        &mut bytes[from..from + length]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no reference into it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_allocated_and_aligned_to_huge_page() {
        let mut memory = Memory::get(STEP + 1, 0).unwrap();
        assert!(memory.bytes() == 2 * STEP && memory.words().as_ptr().cast::<u8>().align_offset(STEP) == 0);
        assert_eq!(memory.piece(STEP, 4)[0], 1);
    }
}
