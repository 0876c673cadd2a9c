//! Returns pages of guest memory that the guest does not use to the host.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{GuestMemory, PAGE};

/// Releases the whole pages of a range, and returns their number of bytes. The range may be arbitrary: parts of pages
/// are kept, and a range that is not in guest memory has no effect. The VMM keeps nothing of its own in guest memory,
/// so a guest that releases a page that it uses damages only itself.
///
/// The pages lose their content. In anonymous memory, they read as zeroes. In memory that is mapped from a snapshot,
/// they read as in the snapshot's file again. The guest must not rely on either. The content comes from the guest's own
/// past, so nothing of another machine becomes visible.
///
/// Mapping zeroes over a snapshot's file would split the mapping at each range, and the kernel limits their number. It
/// would also break differential snapshots: they contain the private pages, and take all others from the file
/// ([`super::pages`]). A released page is no longer private, and reads as in the file, so a snapshot stays exact.
pub fn release(memory: &GuestMemory, start: GuestAddress, length: u64) -> u64 {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !memory.check_range(start, length) {
        return 0;
    }
    let slices = memory.get_slices(start, length).filter_map(Result::ok);
    slices.map(|slice| release_pages(slice.ptr_guard_mut().as_ptr(), slice.len())).sum()
}

fn release_pages(start: *mut u8, length: usize) -> u64 {
    let head = start.align_offset(PAGE as usize);
    let length = length.saturating_sub(head) & !(PAGE as usize - 1);
    if length == 0 {
        return 0;
    }
    // SAFETY: these are whole pages of guest memory, which stays mapped for the life of the process. The VMM accesses
    // guest memory only through raw pointers, so it expects any content at any time.
    let result = unsafe { libc::madvise(start.add(head).cast(), length, libc::MADV_DONTNEED) };
    // The call fails for locked pages, which then simply stay.
    if result == 0 { length as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MIB, PageRun, allocate, map_file, pages, resident_bytes};
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    const START: u64 = 2 * MIB;

    fn byte(memory: &GuestMemory, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn fill(memory: &GuestMemory, value: u8) {
        memory.write_slice(&vec![value; 4 * PAGE as usize], GuestAddress(START)).unwrap();
    }

    #[test]
    fn released_pages_of_booted_machine_are_zero_and_not_resident() {
        let memory = allocate(64).unwrap();
        memory.write_slice(&vec![7; 8 * MIB as usize], GuestAddress(START)).unwrap();
        let before = resident_bytes(&memory).unwrap();
        assert_eq!(release(&memory, GuestAddress(START), 8 * MIB), 8 * MIB);
        assert!(resident_bytes(&memory).unwrap() + 8 * MIB <= before);
        assert_eq!(byte(&memory, START), 0);
    }

    #[test]
    fn parts_of_pages_are_kept() {
        let memory = allocate(64).unwrap();
        fill(&memory, 7);
        assert_eq!(release(&memory, GuestAddress(START + 1), 3 * PAGE - 2), PAGE);
        let bytes = (0..4).map(|page| byte(&memory, START + page * PAGE)).collect::<Vec<_>>();
        assert_eq!(bytes, [7, 0, 7, 7]);
        assert_eq!(release(&memory, GuestAddress(START + 1), PAGE), 0);
        assert_eq!(release(&memory, GuestAddress(START), PAGE - 1), 0);
    }

    #[test]
    fn ranges_outside_memory_have_no_effect() {
        let memory = allocate(64).unwrap();
        fill(&memory, 7);
        for (start, length) in [(START, 64 * MIB), (START, u64::MAX), (u64::MAX, 1), (64 * MIB, PAGE), (START, 0)] {
            assert_eq!(release(&memory, GuestAddress(start), length), 0, "{start:#x} {length:#x}");
        }
        assert_eq!(byte(&memory, START), 7);
    }

    #[test]
    fn released_pages_of_restored_machine_equal_the_file_and_are_not_saved_again() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(&vec![3; 4 * PAGE as usize], START).unwrap();
        let memory = allocate(64).unwrap();
        map_file(&memory, &file, None).unwrap();
        fill(&memory, 7);
        assert_eq!(pages::changed(&memory).unwrap(), [PageRun { first: START / PAGE, count: 4 }]);
        assert_eq!(release(&memory, GuestAddress(START), 2 * PAGE), 2 * PAGE);
        let bytes = (0..4).map(|page| byte(&memory, START + page * PAGE)).collect::<Vec<_>>();
        assert_eq!(bytes, [3, 3, 7, 7]);
        assert_eq!(pages::changed(&memory).unwrap(), [PageRun { first: START / PAGE + 2, count: 2 }]);
    }
}
