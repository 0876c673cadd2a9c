//! Releases the program's memory pages that were needed only during startup.
//!
//! Startup touches most of the program and the C library once; a running VMM uses little of them. While memory is
//! plentiful, the kernel keeps these file pages mapped, in blocks of 64 KiB around each touched page. A released page
//! is mapped again without I/O when it is next used.

use std::ffi::{c_int, c_void};

use libc::{PF_W, PT_LOAD, dl_phdr_info, size_t};

/// Unmaps the read-only segments of the program and its libraries until their next use. Other threads may keep running.
pub fn release_start_up() {
    // SAFETY: the callback is called before this returns, and does not use its last argument.
    unsafe { libc::dl_iterate_phdr(Some(release), std::ptr::null_mut()) };
}

/// Unmaps the pages of one object, except those of writable segments, whose relocated data would be lost.
unsafe extern "C" fn release(object: *mut dl_phdr_info, _size: size_t, _data: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid object, whose program headers are mapped for as long as the object is.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    // SAFETY: sysconf accepts any argument.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_W == 0) {
        // Whole pages only: a segment's last page may be shared with the next segment.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if start < end {
            // SAFETY: the pages are private mappings of a file and were never written to, so the next access reads the
            // same bytes again. An error leaves them mapped.
            unsafe { libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A table in pages without relocations.
    static TABLE: [u8; 1 << 20] = [7; 1 << 20];

    const PAGE: usize = 4096;

    /// The number of the table's whole pages that are mapped (`Documentation/admin-guide/mm/pagemap.rst`).
    fn present() -> usize {
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let first = (&raw const TABLE as usize).div_ceil(PAGE);
        let mut entries = vec![0; (TABLE.len() / PAGE - 1) * 8];
        pagemap.read_exact_at(&mut entries, first as u64 * 8).unwrap();
        entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    #[test]
    fn released_pages_are_mapped_again_on_use() {
        let sum = || std::hint::black_box(&TABLE).iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum();
        let all = present();
        assert_eq!(all, TABLE.len() / PAGE - 1);
        release_start_up();
        // The kernel also maps the pages next to a used page.
        let after = present();
        assert!(after < all / 4, "{after} of {all} pages");
        assert_eq!(sum(), expected);
    }
}
