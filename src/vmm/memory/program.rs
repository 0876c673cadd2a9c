//! The program's own pages: what only starting needed of them is given back.
//!
//! Reading a configuration, loading a kernel and wiring devices touch most of the program and of the C library, once; a
//! monitor that runs goes round in little of it. The kernel would keep all of it mapped for as long as memory is plenty, in
//! pieces of 64 KiB around each page that was touched. They are pages of files, in the page cache: one that is used again
//! comes back without being read from anywhere, and only those that are used do.

use std::ffi::{c_int, c_void};

use libc::{PF_W, PT_LOAD, dl_phdr_info, size_t};

/// Unmaps the pages of all read-only parts of the program and its libraries, until they are used again. Any thread may be
/// running in them.
pub fn release_start_up() {
    // SAFETY: the callback is called before this returns, and does not use its last argument.
    unsafe { libc::dl_iterate_phdr(Some(release), std::ptr::null_mut()) };
}

/// Does so for one of them. What is relocated, and then protected, lies in a segment that can be written, and stays.
unsafe extern "C" fn release(object: *mut dl_phdr_info, _size: size_t, _data: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid object, whose program headers are mapped for as long as the object is.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    // SAFETY: without an argument that could be wrong.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_W == 0) {
        // Whole pages: one that a segment ends in may be another's, too.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if start < end {
            // SAFETY: the pages are a file's, mapped privately and never written to: nothing is lost with them, and
            // whoever touches one finds the same bytes. Where a kernel refuses, all stays as it is.
            unsafe { libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// What the program has a table of, in pages that it is not relocated in.
    static TABLE: [u8; 1 << 20] = [7; 1 << 20];

    const PAGE: usize = 4096;

    /// How many of the table's whole pages this process has (`Documentation/admin-guide/mm/pagemap.rst`).
    fn present() -> usize {
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let first = (&raw const TABLE as usize).div_ceil(PAGE);
        let mut entries = vec![0; (TABLE.len() / PAGE - 1) * 8];
        pagemap.read_exact_at(&mut entries, first as u64 * 8).unwrap();
        entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    #[test]
    fn what_was_touched_is_given_back_and_is_there_again_when_it_is_used() {
        let sum = || std::hint::black_box(&TABLE).iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum();
        let all = present();
        assert_eq!(all, TABLE.len() / PAGE - 1);
        release_start_up();
        // A page that lies beside one that was used since comes with it.
        let after = present();
        assert!(after < all / 4, "{after} of {all} pages");
        assert_eq!(sum(), expected);
    }
}
