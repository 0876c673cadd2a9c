//! Loads kernel images into guest memory: ELF `vmlinux` and `bzImage`.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader, KernelLoaderResult};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

use super::{BootError, open, read_error};
use crate::memory::{GuestMemory, HIGH_MEMORY_START, MMIO_GAP_START};
use machine::config::{BootProtocol, KernelConfig};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// `HdrS` at byte 0x202 of a bzImage (boot.rst, "The Real-Mode Kernel Header").
const BZIMAGE_MAGIC: (usize, [u8; 4]) = (0x202, *b"HdrS");
/// The offset of a bzImage's 64-bit entry point from its load address (boot.rst, "64-bit Boot Protocol").
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// `XLF_KERNEL_64` of `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// `XLF_CAN_BE_LOADED_ABOVE_4G`: the kernel can read its initrd at any address and ignores `initrd_addr_max`.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// 64-bit Linux boot protocol: long mode, flat segments, and RSI points to `boot_params`.
    Linux64(GuestAddress),
    /// PVH: 32-bit protected mode without paging, and EBX points to `hvm_start_info`.
    Pvh(GuestAddress),
}

#[derive(Debug)]
pub(super) struct LoadedKernel {
    pub(super) entry: EntryPoint,
    /// A bzImage's header, which is copied into the zero page.
    pub(super) setup_header: Option<setup_header>,
    /// The end of the memory that the kernel uses before it reads its memory map.
    pub(super) end: u64,
}

impl LoadedKernel {
    /// Returns the first address that the initrd must not occupy. Without a header, that is 4 GiB.
    pub(super) fn initrd_end(&self) -> u64 {
        match self.setup_header {
            Some(header) if { header.xloadflags } & XLF_CAN_BE_LOADED_ABOVE_4G == 0 => {
                u64::from(header.initrd_addr_max) + 1
            }
            _ => 1 << 32,
        }
    }
}

pub(super) fn load(memory: &GuestMemory, config: &KernelConfig, memory_mib: u64) -> Result<LoadedKernel, BootError> {
    let path = &config.path;
    let mut file = open(path)?;
    let head = read_head(&mut file).map_err(|source| read_error(path, source))?;
    if head.starts_with(&ELF_MAGIC) {
        load_elf(memory, config, memory_mib, &mut file)
    } else if head.get(BZIMAGE_MAGIC.0..).is_some_and(|rest| rest.starts_with(&BZIMAGE_MAGIC.1)) {
        load_bzimage(memory, config, memory_mib, &mut file)
    } else {
        Err(BootError::NotAKernel(path.clone()))
    }
}

fn read_head(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(1024);
    file.take(1024).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(head)
}

fn load_elf(
    memory: &GuestMemory,
    config: &KernelConfig,
    memory_mib: u64,
    file: &mut File,
) -> Result<LoadedKernel, BootError> {
    let path = &config.path;
    check_elf(memory, path, memory_mib, file)?;
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(HIGH_MEMORY_START)))
        .map_err(|error| bad_kernel(path, "an ELF kernel", &error))?;
    let entry = match (config.protocol, loaded.pvh_boot_cap) {
        (BootProtocol::Auto | BootProtocol::Pvh, PvhBootCapability::PvhEntryPresent(entry)) => EntryPoint::Pvh(entry),
        (BootProtocol::Pvh, _) => return Err(BootError::NoPvhNote(path.clone())),
        (BootProtocol::Auto | BootProtocol::Linux64, _) => EntryPoint::Linux64(loaded.kernel_load),
    };
    finish(memory, path, memory_mib, &loaded, entry, loaded.kernel_end)
}

/// Offsets and sizes in an ELF-64 header and program header (System V ABI, "Object Files").
mod elf64 {
    pub const CLASS: usize = 4;
    pub const CLASS_64: u8 = 2;
    pub const MACHINE: usize = 18;
    pub const MACHINE_X86_64: u16 = 62;
    pub const PHOFF: usize = 32;
    pub const PHNUM: usize = 56;
    pub const HEADER_SIZE: usize = 64;
    pub const PROGRAM_HEADER_SIZE: usize = 56;
    pub const TYPE_LOAD: u32 = 1;
}

/// Checks an ELF file's segments before anything is loaded, so that the error can describe the invalid segment.
fn check_elf(memory: &GuestMemory, path: &Path, memory_mib: u64, file: &mut File) -> Result<(), BootError> {
    use std::os::unix::fs::FileExt;
    let bad = |reason: &str| bad_kernel(path, "an ELF kernel", &reason);
    let file_size = file.metadata().map_err(|source| read_error(path, source))?.len();
    let mut header = [0_u8; elf64::HEADER_SIZE];
    file.read_exact_at(&mut header, 0).map_err(|_| bad("it is truncated within its header"))?;
    if header[elf64::CLASS] != elf64::CLASS_64 {
        return Err(bad("it is a 32-bit ELF file; only 64-bit kernels are supported"));
    }
    let machine = u16::from_le_bytes([header[elf64::MACHINE], header[elf64::MACHINE + 1]]);
    if machine != elf64::MACHINE_X86_64 {
        return Err(bad(&format!(
            "it was built for ELF machine {machine}, not for x86_64 ({})",
            elf64::MACHINE_X86_64
        )));
    }
    let table = u64_at(&header, elf64::PHOFF);
    let count = u16::from_le_bytes([header[elf64::PHNUM], header[elf64::PHNUM + 1]]);
    let mut loadable = 0;
    for index in 0..u64::from(count) {
        let mut segment = [0_u8; elf64::PROGRAM_HEADER_SIZE];
        let offset = table.checked_add(index * elf64::PROGRAM_HEADER_SIZE as u64);
        offset
            .and_then(|offset| file.read_exact_at(&mut segment, offset).ok())
            .ok_or_else(|| bad("it is truncated within its program headers"))?;
        if u32::from_le_bytes([segment[0], segment[1], segment[2], segment[3]]) != elf64::TYPE_LOAD {
            continue;
        }
        let (offset, address) = (u64_at(&segment, 8), u64_at(&segment, 24));
        let (in_file, in_memory) = (u64_at(&segment, 32), u64_at(&segment, 40));
        if offset.checked_add(in_file).is_none_or(|end| end > file_size) {
            return Err(bad(&format!(
                "it is truncated: a segment ends at byte {}, but the file ends at byte {file_size}",
                offset.saturating_add(in_file)
            )));
        }
        check_range(memory, path, memory_mib, address, address.saturating_add(in_memory.max(in_file)))?;
        loadable += 1;
    }
    if loadable == 0 {
        return Err(bad("it has no loadable segments; it may be an object file or a debug file"));
    }
    Ok(())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

fn load_bzimage(
    memory: &GuestMemory,
    config: &KernelConfig,
    memory_mib: u64,
    file: &mut File,
) -> Result<LoadedKernel, BootError> {
    let path = &config.path;
    let bad = |reason: &str| bad_kernel(path, "a bzImage", &reason);
    if config.protocol == BootProtocol::Pvh {
        return Err(BootError::NoPvhNote(path.clone()));
    }
    let header = read_setup_header(file).ok_or_else(|| bad("it is truncated within its setup header"))?;
    if { header.version } < 0x020c || { header.xloadflags } & XLF_KERNEL_64 == 0 {
        return Err(bad("it has no 64-bit entry point; it must be an x86_64 kernel with boot protocol 2.12 or later"));
    }
    let file_size = file.metadata().map_err(|source| read_error(path, source))?.len();
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let image_size = u64::from(header.syssize) * 16;
    let expected = (setup_sectors + 1) * 512 + image_size;
    // `syssize` is rounded up to 16 bytes, and a signature may follow the image.
    if file_size + 16 <= expected {
        return Err(bad(&format!("it is truncated: it has only {file_size} of {expected} bytes")));
    }
    let start = { header.code32_start }.into();
    let needed = u64::from(header.init_size).max(image_size);
    check_range(memory, path, memory_mib, start, start.saturating_add(needed))?;
    let end = { header.pref_address }.max(start).saturating_add(needed);
    check_range(memory, path, memory_mib, start, end)?;
    let loaded = BzImage::load(memory, None, file, Some(GuestAddress(HIGH_MEMORY_START)))
        .map_err(|error| bad_kernel(path, "a bzImage", &error))?;
    let entry =
        loaded.kernel_load.checked_add(BZIMAGE_ENTRY_64).ok_or_else(|| bad("its entry point is out of range"))?;
    finish(memory, path, memory_mib, &loaded, EntryPoint::Linux64(entry), end)
}

fn read_setup_header(file: &File) -> Option<setup_header> {
    use std::os::unix::fs::FileExt;
    use vm_memory::ByteValued;
    let mut header = setup_header::default();
    file.read_exact_at(header.as_mut_slice(), 0x1f1).ok()?;
    Some(header)
}

fn finish(
    memory: &GuestMemory,
    path: &Path,
    memory_mib: u64,
    loaded: &KernelLoaderResult,
    entry: EntryPoint,
    end: u64,
) -> Result<LoadedKernel, BootError> {
    let (EntryPoint::Linux64(address) | EntryPoint::Pvh(address)) = entry;
    check_range(memory, path, memory_mib, address.0, address.0.saturating_add(1))?;
    Ok(LoadedKernel { entry, setup_header: loaded.setup_header, end })
}

/// Checks that the range is in low guest memory, above the legacy area.
fn check_range(memory: &GuestMemory, path: &Path, memory_mib: u64, start: u64, end: u64) -> Result<(), BootError> {
    let outside = || BootError::OutsideMemory { path: path.to_path_buf(), start, end, memory_mib };
    if start < HIGH_MEMORY_START || end > MMIO_GAP_START || end < start {
        return Err(outside());
    }
    if memory.check_range(GuestAddress(start), (end - start) as usize) { Ok(()) } else { Err(outside()) }
}

fn bad_kernel(path: &Path, format: &'static str, reason: &dyn std::fmt::Display) -> BootError {
    BootError::BadKernel { path: path.to_path_buf(), format, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use proptest::prelude::*;

    /// Returns a minimal ELF-64 executable for x86_64 with one segment, which has `content` at `address`.
    fn elf(address: u64, entry: u64, content: &[u8], in_memory: u64) -> Vec<u8> {
        let mut image = vec![0_u8; 120];
        image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        image[16..18].copy_from_slice(&2_u16.to_le_bytes());
        image[18..20].copy_from_slice(&62_u16.to_le_bytes());
        image[20..24].copy_from_slice(&1_u32.to_le_bytes());
        image[24..32].copy_from_slice(&entry.to_le_bytes());
        image[32..40].copy_from_slice(&64_u64.to_le_bytes());
        image[52..54].copy_from_slice(&64_u16.to_le_bytes());
        image[54..56].copy_from_slice(&56_u16.to_le_bytes());
        image[56..58].copy_from_slice(&1_u16.to_le_bytes());
        image[64..68].copy_from_slice(&1_u32.to_le_bytes());
        image[72..80].copy_from_slice(&120_u64.to_le_bytes());
        image[88..96].copy_from_slice(&address.to_le_bytes());
        image[96..104].copy_from_slice(&(content.len() as u64).to_le_bytes());
        image[104..112].copy_from_slice(&in_memory.to_le_bytes());
        image.extend_from_slice(content);
        image
    }

    fn try_load(image: &[u8]) -> Result<LoadedKernel, BootError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        let config = KernelConfig {
            path: file.path().to_path_buf(),
            initrd: None,
            cmdline: String::new(),
            identity_options: String::new(),
            protocol: BootProtocol::Auto,
            software_kvm_aware: false,
        };
        load(&memory::allocate(64).unwrap(), &config, 64)
    }

    #[test]
    fn elf_kernel_loads_with_its_entry() {
        let kernel = try_load(&elf(0x100_0000, 0x100_0010, &[0x90; 64], 4096)).unwrap();
        assert_eq!(kernel.entry, EntryPoint::Linux64(GuestAddress(0x100_0010)));
        assert_eq!(kernel.end, 0x100_1000);
    }

    #[test]
    fn unknown_kernel_format_is_refused() {
        assert!(matches!(try_load(b"#!/bin/sh\n"), Err(BootError::NotAKernel(_))));
        assert!(matches!(try_load(b""), Err(BootError::NotAKernel(_))));
    }

    #[test]
    fn truncated_kernel_is_refused() {
        let image = elf(0x100_0000, 0x100_0000, &[0x90; 64], 64);
        for length in [50, 100, 150] {
            let error = try_load(&image[..length]).unwrap_err();
            assert!(matches!(error, BootError::BadKernel { .. }), "{length} bytes: {error}");
        }
    }

    #[test]
    fn kernel_larger_than_memory_is_refused() {
        let error = try_load(&elf(0x100_0000, 0x100_0000, &[0x90; 64], 64 << 20)).unwrap_err();
        assert!(matches!(error, BootError::OutsideMemory { memory_mib: 64, .. }), "{error}");
    }

    #[test]
    fn segment_outside_memory_is_refused() {
        for address in [0, 0x8_0000, 0x4000_0000, u64::MAX - 10] {
            let error = try_load(&elf(address, 0x100_0000, &[0x90; 64], 64)).unwrap_err();
            assert!(matches!(error, BootError::OutsideMemory { .. }), "{address:#x}: {error}");
        }
    }

    #[test]
    fn entry_outside_memory_is_refused() {
        assert!(try_load(&elf(0x100_0000, 0x7000_0000, &[0x90; 64], 64)).is_err());
    }

    #[test]
    fn kernel_of_other_architecture_is_refused() {
        let mut image = elf(0x100_0000, 0x100_0000, &[0x90; 64], 64);
        image[18..20].copy_from_slice(&183_u16.to_le_bytes());
        let error = try_load(&image).unwrap_err().to_string();
        assert!(error.contains("ELF machine 183"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_headers_never_panic(mut head in proptest::collection::vec(any::<u8>(), 0..400), elf in any::<bool>()) {
            if elf && head.len() >= 20 {
                head[..5].copy_from_slice(b"\x7fELF\x02");
                head[18..20].copy_from_slice(&62_u16.to_le_bytes());
            } else if head.len() < 0x206 {
                head.resize(0x300, 0x55);
                head[0x202..0x206].copy_from_slice(b"HdrS");
            }
            let _ = try_load(&head);
        }
    }
}
