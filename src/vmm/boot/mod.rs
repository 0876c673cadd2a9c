//! Prepares guest memory for the first instruction: kernel, initrd, command line, boot parameters and firmware tables.
//!
//! The kernel file determines the boot protocol: Linux's 64-bit entry point with `boot_params` ("the zero page"), or
//! PVH with `hvm_start_info`. Errors in the files are found here, before any vCPU runs.

mod acpi;
pub mod cmdline;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod kernel;
pub mod mptable;
mod params;
mod smbios;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use crate::memory::{self, GuestMemory, HIGH_MEMORY_START};
use crate::virtio::mmio::MmioResources;
use machine::config::MachineConfig;

pub use kernel::EntryPoint;
use kernel::LoadedKernel;

/// The address of the zero page or of PVH's start information.
const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
const PVH_MEMMAP: GuestAddress = GuestAddress(0x7100);
/// The address of PVH's module list, which contains the initrd.
const PVH_MODULES: GuestAddress = GuestAddress(0x7f00);
/// The address of the command line, which has 64 KiB of space.
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} is not a kernel: it starts with neither an ELF header nor a bzImage boot sector",
        .0.display()
    )]
    NotAKernel(PathBuf),
    #[error("cannot load {} as {format}: {reason}", path.display())]
    BadKernel {
        path: PathBuf,
        /// `an ELF kernel` or `a bzImage`.
        format: &'static str,
        reason: String,
    },
    #[error(
        "{} needs guest memory from {start:#x} to {end:#x}, but the guest has {memory_mib} MiB, and a kernel can only \
         use the range from 1 MiB to 3 GiB; increase the guest's memory or use a different kernel",
        path.display()
    )]
    OutsideMemory {
        path: PathBuf,
        start: u64,
        /// The first address after the required range.
        end: u64,
        memory_mib: u64,
    },
    #[error("{} has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); boot it with the `linux64` protocol", .0.display())]
    NoPvhNote(PathBuf),
    #[error(
        "the initrd {} ({size} bytes) does not fit into usable memory above the kernel; the guest has {memory_mib} MiB",
        path.display()
    )]
    InitrdTooLarge { path: PathBuf, size: u64, memory_mib: u64 },
    #[error("the kernel command line is {length} bytes long; it must not be longer than {limit} bytes")]
    CommandLineTooLong { length: usize, limit: usize },
    #[error("the kernel command line must not contain a NUL or a line break, but has one at byte {0}")]
    CommandLineByte(usize),
    #[error("no space in guest memory for the {0}")]
    Table(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootState {
    pub entry: EntryPoint,
    /// The address of `boot_params` or `hvm_start_info`.
    pub params: GuestAddress,
}

/// Loads the kernel and the initrd, and writes the command line, boot parameters and firmware tables. `cmdline` is the
/// complete command line from [`cmdline::assemble`].
pub fn load(
    memory: &GuestMemory,
    config: &MachineConfig,
    devices: &[MmioResources],
    cmdline: &str,
) -> Result<BootState, BootError> {
    let kernel = kernel::load(memory, &config.kernel, config.memory_mib)?;
    let initrd = match &config.kernel.initrd {
        Some(path) => Some(load_initrd(memory, path, &kernel, config.memory_mib)?),
        None => None,
    };
    cmdline::check(cmdline)?;
    memory
        .write_slice(format!("{cmdline}\0").as_bytes(), COMMAND_LINE)
        .map_err(|_| BootError::Table("command line"))?;
    let length = cmdline.len() as u32;
    let rsdp = acpi::write(memory, config.cpus.count, devices)?;
    match kernel.entry {
        EntryPoint::Linux64(_) => params::write_zero_page(memory, kernel.setup_header, length, initrd, rsdp)?,
        EntryPoint::Pvh(_) => params::write_pvh_start_info(memory, initrd, rsdp)?,
    }
    mptable::write(memory, config.cpus.count)?;
    if let Some(identity) = &config.identity {
        smbios::write(memory, identity)?;
    }
    Ok(BootState { entry: kernel.entry, params: BOOT_PARAMS })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: GuestAddress,
    size: u64,
}

/// Loads an initrd at the highest address that the kernel can read, because kernels decompress themselves lower down.
fn load_initrd(memory: &GuestMemory, path: &Path, kernel: &LoadedKernel, memory_mib: u64) -> Result<Initrd, BootError> {
    use vm_memory::GuestMemoryBackend;
    let mut file = open(path)?;
    let size = file.metadata().map_err(|source| read_error(path, source))?.len();
    let too_large = || BootError::InitrdTooLarge { path: path.to_path_buf(), size, memory_mib };
    let low_end = memory.iter().next().map_or(0, vm_memory::GuestMemoryRegion::len);
    let end = low_end.min(kernel.initrd_end());
    let address = place_initrd(size, kernel.end.max(HIGH_MEMORY_START), end).ok_or_else(too_large)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| read_error(path, io::Error::other(error)))?;
    Ok(Initrd { address: GuestAddress(address), size })
}

/// Returns the highest page-aligned address at which `size` bytes fit between `start` and `end`.
fn place_initrd(size: u64, start: u64, end: u64) -> Option<u64> {
    let address = end.checked_sub(size)? & !0xfff;
    (address >= start).then_some(address)
}

fn open(path: &Path) -> Result<File, BootError> {
    let file = File::open(path).map_err(|source| read_error(path, source))?;
    let kind = file.metadata().map_err(|source| read_error(path, source))?;
    if kind.is_file() { Ok(file) } else { Err(read_error(path, io::Error::other("it must be a regular file"))) }
}

fn read_error(path: &Path, source: io::Error) -> BootError {
    BootError::Read { path: path.to_path_buf(), source }
}

/// Returns the guest's memory map as `(start, length, usable)`. Firmware would occupy the ranges that are not usable.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, bool)> {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let low_end = memory.iter().next().map_or(0, |region| region.len());
    let mut map = vec![
        (0, memory::EBDA_START, true),
        (memory::EBDA_START, 0xa_0000 - memory::EBDA_START, false),
        (memory::ACPI_START, HIGH_MEMORY_START - memory::ACPI_START, false),
        (HIGH_MEMORY_START, low_end - HIGH_MEMORY_START, true),
    ];
    map.extend(memory.iter().skip(1).map(|region| (region.start_addr().0, region.len(), true)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::bootparam::setup_header;

    fn kernel(initrd_addr_max: u32, xloadflags: u16) -> LoadedKernel {
        let header = setup_header { initrd_addr_max, xloadflags, ..Default::default() };
        LoadedKernel { entry: EntryPoint::Linux64(GuestAddress(0)), setup_header: Some(header), end: 32 << 20 }
    }

    #[test]
    fn initrd_is_placed_within_kernel_limit() {
        const SIZE: u64 = 5000;
        let memory = memory::allocate(2560).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; SIZE as usize]).unwrap();
        let load = |kernel: LoadedKernel| load_initrd(&memory, file.path(), &kernel, 2560);
        let low = load(kernel(0x7fff_ffff, 1)).unwrap();
        assert_eq!(low, Initrd { address: GuestAddress(0x7fff_e000), size: SIZE });
        assert_eq!(memory.read_obj::<u8>(GuestAddress(low.address.0 + SIZE - 1)).unwrap(), 7);
        // With XLF_CAN_BE_LOADED_ABOVE_4G, or without a header, the limit is the end of memory.
        let top = (2560 << 20) - 0x2000;
        assert_eq!(load(kernel(0x7fff_ffff, 3)).unwrap().address.0, top);
        assert_eq!(load(LoadedKernel { setup_header: None, ..kernel(0, 0) }).unwrap().address.0, top);
        assert!(matches!(load(kernel(0x1ff_ffff, 1)), Err(BootError::InitrdTooLarge { .. })));
    }

    #[test]
    fn oversized_initrd_is_not_placed() {
        assert_eq!(place_initrd(0x1001, 0x10_0000, 0x20_0000), Some(0x1f_e000));
        assert_eq!(place_initrd(0x10_0000, 0x10_0000, 0x20_0000), Some(0x10_0000));
        assert_eq!(place_initrd(0x10_0001, 0x10_0000, 0x20_0000), None);
        assert_eq!(place_initrd(u64::MAX, 0, 0x20_0000), None);
    }
}
