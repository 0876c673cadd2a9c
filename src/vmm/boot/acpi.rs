//! ACPI tables (ACPI Specification 6.5): RSDP, XSDT, FADT, FACS, MADT, and DSDT with an `LNRO0005` object per device.
//! Distributions' kernels, most of which do not support MP tables, find virtio-mmio devices through ACPI.
//!
//! The FADT does not set `HW_REDUCED_ACPI`, because Linux would then ignore the 8259 and the timer, and the serial port
//! would have no interrupt.

use acpi_tables::aml::{Device, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::devices::{acpi_pm, i8042};
use crate::memory::{ACPI_START, GuestMemory, IO_APIC_ADDRESS, LOCAL_APIC_ADDRESS, SMBIOS_START, VIRTIO_MMIO_SIZE};
use crate::virtio::mmio::MmioResources;

const OEM: [u8; 6] = *b"WISP  ";
const OEM_TABLE: [u8; 8] = *b"MICRO-VM";
const OEM_REVISION: u32 = 1;
/// The length of a table header (section 5.2.6).
const HEADER: u32 = 36;
/// MADT flags (section 5.2.12): the PC has 8259s.
const PCAT_COMPAT: u32 = 1;
/// FADT `IAPC_BOOT_ARCH` (section 5.2.9.3): ISA devices and an 8042; no VGA, no MSI, no PCIe ASPM.
const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;
/// Latencies above the limits, which mean that C2 and C3 are not supported (section 5.2.9, `P_LVL2_LAT`).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// Writes the tables to [`ACPI_START`], where kernels search for the RSDP, and returns its address.
pub fn write(memory: &GuestMemory, cpus: u32, devices: &[MmioResources]) -> Result<GuestAddress, BootError> {
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.add(dsdt(devices).as_slice());
    let facs = area.add(&bytes(&FACS::new()));
    let fadt = area.add(&bytes(&fadt(dsdt, facs).finalize()));
    let madt = area.add(madt(cpus).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&bytes(&xsdt));
    area.bytes[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM, xsdt)));
    if area.bytes.len() as u64 > SMBIOS_START - ACPI_START {
        return Err(BootError::Table("ACPI tables"));
    }
    memory.write_slice(&area.bytes, GuestAddress(ACPI_START)).map_err(|_| BootError::Table("ACPI tables"))?;
    Ok(GuestAddress(ACPI_START))
}

struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table, aligned to 64 bytes as a FACS requires, and returns its guest address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend(table);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    let port = |bits, address: u16| GAS::new(AddressSpace::SystemIo, bits, 0, AccessSize::Undefined, address.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(acpi_pm::SCI).into();
    fadt.pm1a_evt_blk = u32::from(acpi_pm::PORT).into();
    fadt.pm1_evt_len = acpi_pm::EVENT_LENGTH;
    fadt.x_pm1a_evt_blk = port(8 * acpi_pm::EVENT_LENGTH, acpi_pm::PORT);
    let control = acpi_pm::PORT + u16::from(acpi_pm::EVENT_LENGTH);
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm1_cnt_len = acpi_pm::CONTROL_LENGTH;
    fadt.x_pm1a_cnt_blk = port(8 * acpi_pm::CONTROL_LENGTH, control);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(8, i8042::PORT + i8042::COMMAND_OFFSET);
    fadt.reset_value = i8042::RESET_COMMAND;
    fadt
}

fn madt(cpus: u32) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..cpus as u8 {
        madt.append_slice(&bytes(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes(&IoApic::new(cpus as u8, IO_APIC_ADDRESS, 0)));
    madt
}

fn dsdt(devices: &[MmioResources]) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    let sleep_type = acpi_pm::SLEEP_TYPE_S5;
    let s5 = Package::new(vec![&sleep_type, &sleep_type, &aml::ZERO, &aml::ZERO]);
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &s5)));
    for (index, resources) in devices.iter().enumerate() {
        dsdt.append_slice(&virtio_device(index, *resources));
    }
    dsdt
}

/// Returns the device `\_SB.VRnn`, to which Linux binds its virtio-mmio driver.
fn virtio_device(index: usize, resources: MmioResources) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, resources.address as u32, VIRTIO_MMIO_SIZE as u32);
    let interrupt = Interrupt::new(true, true, false, false, resources.irq);
    let settings = ResourceTemplate::new(vec![&registers, &interrupt]);
    let id = Name::new("_HID".into(), &"LNRO0005");
    let unique_id = Name::new("_UID".into(), &index);
    let cache_coherent = Name::new("_CCA".into(), &aml::ONE);
    let settings = Name::new("_CRS".into(), &settings);
    let name = format!("VR{index:02X}");
    let device = Device::new(name.as_str().into(), vec![&id, &unique_id, &cache_coherent, &settings]);
    bytes(&Scope::new("_SB_".into(), vec![&device]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn tables(cpus: u32, devices: u64) -> Vec<u8> {
        let memory = memory::allocate(64).unwrap();
        let resources: Vec<MmioResources> =
            (0..devices).map(|n| MmioResources { address: 0xd000_0000 + n * 0x1000, irq: 5 + n as u32 }).collect();
        let rsdp = write(&memory, cpus, &resources).unwrap();
        let mut bytes = vec![0; (SMBIOS_START - rsdp.0) as usize];
        memory.read_slice(&mut bytes, rsdp).unwrap();
        bytes
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Returns the table at `address` after checking its length and checksum.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let table = &bytes[(address - ACPI_START) as usize..];
        let table = &table[..u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize];
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum of {:?}", &table[..4]);
        table
    }

    #[test]
    fn tables_are_linked_with_valid_checksums() {
        let bytes = tables(64, 16);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        let xsdt = table(&bytes, long(&bytes, 24));
        let (fadt, madt) = (table(&bytes, long(xsdt, 36)), table(&bytes, long(xsdt, 44)));
        assert_eq!((&xsdt[..4], &fadt[..4], &madt[..4]), (&b"XSDT"[..], &b"FACP"[..], &b"APIC"[..]));
        assert_eq!(&table(&bytes, long(fadt, 140))[..4], b"DSDT");
    }

    #[test]
    fn each_vcpu_and_device_has_an_entry() {
        let bytes = tables(3, 4);
        let xsdt = table(&bytes, long(&bytes, 24));
        let madt = table(&bytes, long(xsdt, 44));
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        let dsdt = table(&bytes, long(table(&bytes, long(xsdt, 36)), 140));
        assert_eq!(dsdt.windows(8).filter(|window| window == b"LNRO0005").count(), 4);
    }
}
