//! From files to a guest that can take its first instruction: kernel, initrd, command line, boot parameters, ACPI, MP
//! and SMBIOS tables, all in guest memory.
//!
//! Two protocols: the 64-bit entry of the Linux boot protocol, with `boot_params` ("the zero page"), and PVH, with
//! `hvm_start_info`. Which one is used follows from the kernel, see [`BootProtocol`](crate::vmm::config::BootProtocol).
//! Whatever is wrong with a file is found here, before a vCPU exists.

mod acpi;
pub mod cmdline;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod kernel;
pub mod mptable;
mod params;
mod smbios;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use crate::vmm::config::MachineConfig;
use crate::vmm::memory::{self, GuestMemory, HIGH_MEMORY_START};
use crate::vmm::virtio::mmio::Slot;

pub use kernel::Entry;
use kernel::LoadedKernel;

/// Where the zero page or the PVH start information lies.
const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
/// Where the PVH memory map lies.
const PVH_MEMMAP: GuestAddress = GuestAddress(0x7100);
/// Where PVH's list of modules (the initrd) lies.
const PVH_MODULES: GuestAddress = GuestAddress(0x7f00);
/// Where the command line lies: 64 KiB are free for it.
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);

/// Why nothing can be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be opened or read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither ELF nor bzImage.
    #[error(
        "{} is not a kernel that can be booted: it begins with neither ELF's magic number nor a bzImage's boot sector",
        .0.display()
    )]
    NotAKernel(PathBuf),
    /// A kernel, but of another machine or a damaged one.
    #[error("{} cannot be loaded as {format}: {reason}", path.display())]
    BadKernel {
        /// Which file.
        path: PathBuf,
        /// `an ELF kernel` or `a bzImage`.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A segment or the entry lies outside guest memory.
    #[error(
        "{} needs guest memory from {start:#x} to {end:#x}, but the guest has {memory_mib} MiB; give it more, or use a smaller kernel",
        path.display()
    )]
    OutsideMemory {
        /// Which file.
        path: PathBuf,
        /// First address needed.
        start: u64,
        /// First address after what is needed.
        end: u64,
        /// What the guest has.
        memory_mib: u64,
    },
    /// PVH was asked for, and the kernel has no PVH note.
    #[error("{} has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); boot it with the `linux64` protocol", .0.display())]
    NoPvhNote(PathBuf),
    /// The initrd does not fit.
    #[error("the initrd {} ({size} bytes) does not fit beside the kernel into {memory_mib} MiB of guest memory", path.display())]
    InitrdTooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What the guest has.
        memory_mib: u64,
    },
    /// The command line is longer than the kernel reads.
    #[error("the kernel command line has {length} bytes, and the kernel reads {limit} at most: shorten it")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// The most that is possible.
        limit: usize,
    },
    /// The command line has a byte that cannot be in one.
    #[error("the kernel command line has a NUL or a line break at byte {0}")]
    CommandLineByte(usize),
    /// One of the tables could not be written: guest memory lacks the place for it.
    #[error("guest memory has no room for the {0}")]
    Table(&'static str),
}

/// What the first vCPU needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootState {
    /// Where and how the kernel is entered.
    pub entry: Entry,
    /// The address of `boot_params` or `hvm_start_info`.
    pub params: GuestAddress,
}

/// Puts everything into `memory`. `cmdline` is the whole command line, see [`cmdline::assemble`]; `slots` are where
/// the virtio devices will be.
pub fn load(
    memory: &GuestMemory,
    config: &MachineConfig,
    slots: &[Slot],
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
    let rsdp = acpi::write(memory, config.cpus.count, slots)?;
    match kernel.entry {
        Entry::Linux64(_) => params::write_zero_page(memory, kernel.setup_header, length, initrd, rsdp)?,
        Entry::Pvh(_) => params::write_pvh_start_info(memory, initrd, rsdp)?,
    }
    mptable::write(memory, config.cpus.count)?;
    if let Some(identity) = &config.identity {
        smbios::write(memory, identity)?;
    }
    Ok(BootState { entry: kernel.entry, params: BOOT_PARAMS })
}

/// Where an initrd lies, and its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: GuestAddress,
    size: u64,
}

/// Loads an initrd as high as it fits below the MMIO gap, where no kernel unpacks itself, and as the kernel can read it.
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

/// The highest page at which `size` bytes fit between `start` and `end`.
fn place_initrd(size: u64, start: u64, end: u64) -> Option<u64> {
    let address = end.checked_sub(size)? & !0xfff;
    (address >= start).then_some(address)
}

fn open(path: &Path) -> Result<File, BootError> {
    let file = File::open(path).map_err(|source| read_error(path, source))?;
    let kind = file.metadata().map_err(|source| read_error(path, source))?;
    if kind.is_file() { Ok(file) } else { Err(read_error(path, io::Error::other("it is not a regular file"))) }
}

fn read_error(path: &Path, source: io::Error) -> BootError {
    BootError::Read { path: path.to_path_buf(), source }
}

/// The memory map that a kernel is told, as `(start, length, usable)`; the holes are for firmware that is not there.
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
        LoadedKernel { entry: Entry::Linux64(GuestAddress(0)), setup_header: Some(header), end: 32 << 20 }
    }

    #[test]
    fn initrd_lies_where_its_kernel_can_read_it() {
        const SIZE: u64 = 5000;
        let memory = memory::allocate(2560).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; SIZE as usize]).unwrap();
        let load = |kernel: LoadedKernel| load_initrd(&memory, file.path(), &kernel, 2560);
        let low = load(kernel(0x7fff_ffff, 1)).unwrap();
        assert_eq!(low, Initrd { address: GuestAddress(0x7fff_e000), size: SIZE });
        assert_eq!(memory.read_obj::<u8>(GuestAddress(low.address.0 + SIZE - 1)).unwrap(), 7);
        // With XLF_CAN_BE_LOADED_ABOVE_4G, and without a header, it is as high as memory goes.
        let top = (2560 << 20) - 0x2000;
        assert_eq!(load(kernel(0x7fff_ffff, 3)).unwrap().address.0, top);
        assert_eq!(load(LoadedKernel { setup_header: None, ..kernel(0, 0) }).unwrap().address.0, top);
        assert!(matches!(load(kernel(0x1ff_ffff, 1)), Err(BootError::InitrdTooLarge { .. })));
    }

    #[test]
    fn initrd_that_does_not_fit_has_no_place() {
        assert_eq!(place_initrd(0x1001, 0x10_0000, 0x20_0000), Some(0x1f_e000));
        assert_eq!(place_initrd(0x10_0000, 0x10_0000, 0x20_0000), Some(0x10_0000));
        assert_eq!(place_initrd(0x10_0001, 0x10_0000, 0x20_0000), None);
        assert_eq!(place_initrd(u64::MAX, 0, 0x20_0000), None);
    }
}
