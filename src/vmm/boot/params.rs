//! Boot parameters: the zero page, or PVH's start information.
//!
//! The zero page also refers to a seed for the kernel's random number generator (`SETUP_RNG_SEED`). Without the seed, a
//! kernel without usable RDRAND reseeds for each random number until it has gathered enough entropy.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use rustix::rand::{GetRandomFlags, getrandom};

use super::{BOOT_PARAMS, BootError, COMMAND_LINE, Initrd, PVH_MEMMAP, PVH_MODULES, memory_map};
use crate::memory::GuestMemory;

/// `E820_TYPE_RESERVED` and `E820_TYPE_RAM`, indexed by `usable`. PVH's memory map uses the same numbers.
const E820: [u32; 2] = [2, 1];
/// Header fields for a kernel without a header (an ELF `vmlinux`): `BOOT_FLAG`, `HdrS` and protocol 2.15.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const PROTOCOL_VERSION: u16 = 0x020f;
/// `type_of_loader`: a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: the kernel is loaded at 1 MiB or higher.
const LOADED_HIGH: u8 = 1;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// The address of the `setup_data` list, which has one element.
const SETUP_DATA: GuestAddress = GuestAddress(0x6000);
/// `SETUP_RNG_SEED` (boot.rst, "setup_data"), and the seed's size in bytes.
const SETUP_RNG_SEED: u32 = 9;
const SEED_LENGTH: usize = 64;
/// `hvm_start_info.magic` (Xen, `start_info.h`): "xEn3" with the top bit of its E set.
const PVH_MAGIC: u32 = 0x336e_c578;

/// Writes `boot_params` (boot.rst, "The Zero Page") to [`BOOT_PARAMS`].
pub(super) fn write_zero_page(
    memory: &GuestMemory,
    header: Option<setup_header>,
    cmdline_length: u32,
    initrd: Option<Initrd>,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let own_header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_VERSION,
        kernel_alignment: KERNEL_ALIGNMENT,
        loadflags: LOADED_HIGH,
        ..Default::default()
    };
    let mut params = boot_params { hdr: header.unwrap_or(own_header), ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE.0 as u32;
    params.hdr.cmdline_size = cmdline_length;
    params.hdr.setup_data = write_random_seed(memory)?.0;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.address.0 as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    params.acpi_rsdp_addr = rsdp.0;
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    for (entry, (addr, size, usable)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: E820[usize::from(usable)] };
    }
    memory.write_obj(params, BOOT_PARAMS).map_err(|_| BootError::Table("boot parameters"))
}

/// Writes a `setup_data` element with a random seed. The kernel wipes it after use.
fn write_random_seed(memory: &GuestMemory) -> Result<GuestAddress, BootError> {
    let mut element = [0; 16 + SEED_LENGTH];
    element[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    element[12..16].copy_from_slice(&(SEED_LENGTH as u32).to_le_bytes());
    // Cannot fail: the host's random number generator is seeded long before wisp can run.
    let _ = getrandom(&mut element[16..], GetRandomFlags::empty());
    memory.write_slice(&element, SETUP_DATA).map_err(|_| BootError::Table("random seed"))?;
    Ok(SETUP_DATA)
}

/// Wraps a PVH structure, to write it to guest memory.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Pvh<T>(T);

// SAFETY: the structures are `repr(C)`, hold integers only and have no padding (their sizes are asserted by
// linux-loader), so any bytes are a valid value and every byte is initialized.
unsafe impl ByteValued for Pvh<hvm_start_info> {}
// SAFETY: as above.
unsafe impl ByteValued for Pvh<hvm_memmap_table_entry> {}
// SAFETY: as above.
unsafe impl ByteValued for Pvh<hvm_modlist_entry> {}

/// Writes `hvm_start_info` (Xen, "x86/HVM direct boot ABI") to [`BOOT_PARAMS`], with its memory map and module list.
pub(super) fn write_pvh_start_info(
    memory: &GuestMemory,
    initrd: Option<Initrd>,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let no_room = |_| BootError::Table("PVH start information");
    let map = memory_map(memory);
    let mut start_info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: PVH_MEMMAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    for (index, (addr, size, usable)) in map.into_iter().enumerate() {
        let entry = hvm_memmap_table_entry { addr, size, type_: E820[usize::from(usable)], reserved: 0 };
        let offset = index * size_of::<hvm_memmap_table_entry>();
        memory.write_obj(Pvh(entry), GuestAddress(PVH_MEMMAP.0 + offset as u64)).map_err(no_room)?;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.address.0, size: initrd.size, ..Default::default() };
        memory.write_obj(Pvh(module), PVH_MODULES).map_err(no_room)?;
        start_info.nr_modules = 1;
        start_info.modlist_paddr = PVH_MODULES.0;
    }
    memory.write_obj(Pvh(start_info), BOOT_PARAMS).map_err(no_room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn zero_page_has_memory_map_and_command_line() {
        let memory = memory::allocate(4096).unwrap();
        write_zero_page(&memory, None, 7, None, GuestAddress(0xe_0000)).unwrap();
        let params: boot_params = memory.read_obj(BOOT_PARAMS).unwrap();
        assert_eq!({ params.hdr.cmd_line_ptr }, 0x2_0000);
        assert_eq!({ params.hdr.cmdline_size }, 7);
        let usable: u64 = params.e820_table[..usize::from(params.e820_entries)]
            .iter()
            .filter(|entry| { entry.r#type } == 1)
            .map(|entry| entry.size)
            .sum();
        assert!(usable > 4095 * memory::MIB && usable < 4096 * memory::MIB, "{usable} bytes are usable");
    }

    #[test]
    fn every_boot_has_its_own_seed() {
        let seed = || {
            let memory = memory::allocate(64).unwrap();
            write_zero_page(&memory, None, 7, None, GuestAddress(0xe_0000)).unwrap();
            let mut seed = [0; SEED_LENGTH];
            memory.read_slice(&mut seed, GuestAddress(SETUP_DATA.0 + 16)).unwrap();
            seed
        };
        assert_ne!(seed(), seed());
    }

    #[test]
    fn pvh_start_information_names_the_initrd() {
        let memory = memory::allocate(64).unwrap();
        let initrd = Initrd { address: GuestAddress(0x300_0000), size: 77 };
        write_pvh_start_info(&memory, Some(initrd), GuestAddress(0xe_0000)).unwrap();
        let info: Pvh<hvm_start_info> = memory.read_obj(BOOT_PARAMS).unwrap();
        assert_eq!((info.0.magic, info.0.nr_modules), (PVH_MAGIC, 1));
        let module: Pvh<hvm_modlist_entry> = memory.read_obj(GuestAddress(info.0.modlist_paddr)).unwrap();
        assert_eq!((module.0.paddr, module.0.size), (0x300_0000, 77));
    }
}
