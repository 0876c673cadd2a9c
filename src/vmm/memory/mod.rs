//! Guest physical memory and its layout.
//!
//! ```text
//! 0x0000_0000  page tables, GDT, boot parameters, command line      (below 640 KiB)
//! 0x000e_0000  ACPI tables
//! 0x000f_0000  SMBIOS and MP tables, where kernels search for them
//! 0x0010_0000  kernel and all other memory; the initrd at the end
//! 0xc000_0000  end of low memory; the 32-bit MMIO gap begins
//! 0xd000_0000  virtio-mmio devices, one page each
//! 0xfec0_0000  I/O APIC, local APIC, KVM's own pages
//! 0x1_0000_0000  the rest of the memory
//! ```
//!
//! All mappings are private, without reserved swap space. A booted machine's memory is anonymous, aligned to 2 MiB, and
//! requests transparent huge pages. In a restored machine, mappings of the snapshot's files replace it where they have
//! data, and the rest has small pages.

pub mod pages;
pub mod program;
pub mod release;
mod snapshot_files;

use std::io;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

pub use pages::{PAGE, PageRun};
pub use snapshot_files::map_file;

pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

pub const MIB: u64 = 1 << 20;
/// The end of low memory and the start of the 32-bit MMIO gap.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// The end of the gap and the start of high memory.
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;
/// The address of the first virtio-mmio device; the next one is [`VIRTIO_MMIO_SIZE`] higher.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Three pages that KVM needs on Intel hosts for real mode (KVM_SET_TSS_ADDR).
pub const KVM_TSS_ADDRESS: u64 = 0xfffb_d000;
pub const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

/// The end of conventional memory, where a PC's extended BIOS data area begins.
pub const EBDA_START: u64 = 0x9_fc00;
/// The address at which kernels search for ACPI's RSDP; the other tables follow it.
pub const ACPI_START: u64 = 0xe_0000;
/// The start of the area in which kernels search for the SMBIOS entry point and the MP table.
pub const SMBIOS_START: u64 = 0xf_0000;
/// The address of the MP table, after the SMBIOS entry point.
pub const MP_TABLE_START: u64 = SMBIOS_START + 0x20;
/// The address of the SMBIOS tables, after the largest possible MP table.
pub const SMBIOS_TABLES: u64 = SMBIOS_START + 0x1000;
pub const SMBIOS_TABLES_SIZE: u64 = 0x1000;
/// The end of the legacy area, and the lowest address at which a kernel can be loaded.
pub const HIGH_MEMORY_START: u64 = MIB;

const HUGE_PAGE: u64 = 2 * MIB;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("{0} MiB of guest memory does not fit into the address space")]
    TooLarge(u64),
    #[error("cannot map {mib} MiB of guest memory: {source}")]
    Map { mib: u64, source: MmapRegionError },
    #[error("cannot map the snapshot's memory: {0}")]
    File(#[source] io::Error),
    #[error("cannot set up lazy mapping of guest memory: {0}")]
    Advise(#[source] io::Error),
}

/// Returns the ranges of guest physical memory in ascending order, as `(start, length)` in bytes.
pub fn ranges(memory_mib: u64) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
    let too_large = || MemoryError::TooLarge(memory_mib);
    let size = memory_mib.checked_mul(MIB).filter(|size| *size < 1 << 46).ok_or_else(too_large)?;
    let low = size.min(MMIO_GAP_START);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if size > low {
        ranges.push((GuestAddress(MMIO_GAP_END), (size - low) as usize));
    }
    Ok(ranges)
}

/// Maps `memory_mib` MiB of zeroed memory, whose pages are allocated on first access.
pub fn allocate(memory_mib: u64) -> Result<GuestMemory, MemoryError> {
    let regions = ranges(memory_mib)?
        .into_iter()
        .map(|(start, length)| allocate_region(memory_mib, start, length))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(GuestMemory::from_regions(regions).expect("the ranges are sorted and do not overlap"))
}

fn allocate_region(mib: u64, start: GuestAddress, length: usize) -> Result<GuestRegionMmap<()>, MemoryError> {
    let mapped =
        map_aligned(length).map_err(|source| MemoryError::Map { mib, source: MmapRegionError::Mmap(source) })?;
    // SAFETY: `map_aligned` returned `length` bytes of private anonymous memory that nothing else refers to.
    let region = unsafe { MmapRegion::build_raw(mapped, length, ACCESS, MAP_FLAGS) }
        .map_err(|source| MemoryError::Map { mib, source })?;
    // `MmapRegion::build_raw` does not own the mapping, so it lives as long as the process, which runs one machine.
    Ok(GuestRegionMmap::new(region, start).expect("the ranges end below the top of the address space"))
}

const ACCESS: i32 = libc::PROT_READ | libc::PROT_WRITE;
const MAP_FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `length` bytes at a multiple of 2 MiB, so that a huge page of the host can back a huge page of the guest.
fn map_aligned(length: usize) -> io::Result<*mut u8> {
    let slack = HUGE_PAGE as usize;
    let padded = length.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), padded, ACCESS, MAP_FLAGS, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = address.align_offset(slack);
    // SAFETY: `head` is below 2 MiB, so both cut-off ends and the kept middle lie within the mapping just created.
    let aligned = unsafe {
        let aligned = address.add(head);
        if head > 0 {
            libc::munmap(address, head);
        }
        if slack > head {
            libc::munmap(aligned.add(length), slack - head);
        }
        libc::madvise(aligned, length, libc::MADV_HUGEPAGE);
        libc::madvise(aligned, length, libc::MADV_DONTDUMP);
        aligned
    };
    Ok(aligned.cast())
}

/// Returns the resident bytes of `memory` (`Rss` in `/proc/self/smaps`), including mapped pages of a snapshot's files.
pub fn resident_bytes(memory: &GuestMemory) -> io::Result<u64> {
    let ranges: Vec<_> = memory
        .iter()
        .map(|region| {
            let start = region.as_ptr() as usize;
            start..start + region.size()
        })
        .collect();
    let text = std::fs::read_to_string("/proc/self/smaps")?;
    let (mut resident, mut is_guest) = (0, false);
    for line in text.lines() {
        if let Some(kib) = line.strip_prefix("Rss:") {
            let kib = kib.trim().trim_end_matches(" kB").parse::<u64>().map_err(io::Error::other)?;
            resident += if is_guest { kib << 10 } else { 0 };
        } else if let Some(start) = line.split_once('-').and_then(|(start, _)| usize::from_str_radix(start, 16).ok()) {
            is_guest = ranges.iter().any(|range| range.contains(&start));
        }
    }
    Ok(resident)
}

/// Returns this process's resident bytes, including guest memory (`/proc/self/statm`), or 0 if the file cannot be read.
pub fn process_resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_up_to_the_gap_is_one_range() {
        assert_eq!(ranges(3072).unwrap(), vec![(GuestAddress(0), 3072 << 20)]);
    }

    #[test]
    fn memory_above_the_gap_is_a_second_range() {
        let expected = vec![(GuestAddress(0), 3072 << 20), (GuestAddress(MMIO_GAP_END), 1024 << 20)];
        assert_eq!(ranges(4096).unwrap(), expected);
    }

    /// Checks that the ranges contain each MiB of memory at its address, in order and outside the gap.
    fn check_ranges(memory_mib: u64) {
        let address = |mib: u64| if mib < 3 << 10 { mib * MIB } else { mib * MIB + (1 << 30) };
        let expected: Vec<u64> = (0..memory_mib).map(address).collect();
        let ranges = ranges(memory_mib).unwrap();
        let of_range = |(start, length): &(GuestAddress, usize)| (start.0..start.0 + *length as u64).step_by(1 << 20);
        assert_eq!(ranges.iter().flat_map(of_range).collect::<Vec<_>>(), expected, "{memory_mib} MiB");
        let bytes: u64 = ranges.iter().map(|(_, length)| *length as u64).sum();
        assert_eq!(bytes, memory_mib * MIB);
        assert_eq!(ranges.len(), if memory_mib <= 3 << 10 { 1 } else { 2 }, "{memory_mib} MiB");
    }

    #[test]
    fn every_size_around_the_gap_matches_model() {
        (0..=64).chain(3008..=3136).chain(4032..=4160).for_each(check_ranges);
    }

    #[test]
    fn size_limit_is_exact() {
        let limit = 1 << 26;
        for memory_mib in [limit - 2, limit - 1] {
            let sum: u64 = ranges(memory_mib).unwrap().iter().map(|(_, length)| *length as u64).sum();
            assert_eq!(sum, memory_mib * MIB);
        }
        for memory_mib in [limit, limit + 1, 1 << 43, 1 << 44, (1 << 44) + 1, u64::MAX - 1] {
            assert!(matches!(ranges(memory_mib), Err(MemoryError::TooLarge(refused)) if refused == memory_mib));
        }
    }

    #[test]
    fn impossible_size_is_refused() {
        assert!(matches!(ranges(u64::MAX), Err(MemoryError::TooLarge(u64::MAX))));
    }

    #[test]
    fn memory_is_aligned_zeroed_and_lazy() {
        let memory = allocate(64).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host as usize % HUGE_PAGE as usize, 0);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x10_0000)).unwrap(), 0);
        memory.write_obj(1_u8, GuestAddress(0x10_0000)).unwrap();
        let resident = resident_bytes(&memory).unwrap();
        assert!((4096..=8 * MIB).contains(&resident), "{resident} bytes of 64 MiB are resident");
    }
}
