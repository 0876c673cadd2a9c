//! The MP table for kernels without ACPI (Intel MultiProcessor Specification 1.4, chapter 4).
//!
//! It describes an ISA bus and an I/O APIC. ISA line n is connected to pin n. vCPU n has local APIC ID n.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::{GuestMemory, IO_APIC_ADDRESS, LOCAL_APIC_ADDRESS, MP_TABLE_START};

/// The number of pins of KVM's I/O APIC.
pub const IO_APIC_PINS: u8 = 24;

/// The version of the specification, 1.4, in both structures.
const SPECIFICATION_REVISION: u8 = 4;
/// The version of the integrated local APICs, also used for the I/O APIC.
const APIC_VERSION: u8 = 0x14;
const ISA_BUS_ID: u8 = 0;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOTSTRAP: u8 = 2;
const IO_APIC_ENABLED: u8 = 1;
/// Interrupt types (table 4-10): vectored, NMI, from an 8259.
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;
/// Family 6 with an on-chip APIC and FPU. Kernels only print this.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

/// Writes the floating pointer structure and the configuration table for `cpus` vCPUs to [`MP_TABLE_START`].
pub fn write(memory: &GuestMemory, cpus: u32) -> Result<(), BootError> {
    let table_address = MP_TABLE_START + 16;
    let mut bytes = floating_pointer(table_address as u32);
    bytes.extend(configuration_table(cpus));
    memory.write_slice(&bytes, GuestAddress(MP_TABLE_START)).map_err(|_| BootError::Table("MP table"))
}

fn floating_pointer(table: u32) -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(table.to_le_bytes());
    pointer.extend([1, SPECIFICATION_REVISION, 0]);
    pointer.extend([0; 5]);
    seal(&mut pointer, 10);
    pointer
}

fn configuration_table(cpus: u32) -> Vec<u8> {
    let io_apic_id = cpus as u8;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus as u8 {
        let flags = PROCESSOR_ENABLED | if id == 0 { PROCESSOR_BOOTSTRAP } else { 0 };
        let mut entry = vec![ENTRY_PROCESSOR, id, APIC_VERSION, flags];
        entry.extend(CPU_SIGNATURE.to_le_bytes());
        entry.extend(CPU_FEATURES.to_le_bytes());
        entry.extend([0; 8]);
        add(&entry);
    }
    add(&[ENTRY_BUS, ISA_BUS_ID, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut io_apic = vec![ENTRY_IO_APIC, io_apic_id, APIC_VERSION, IO_APIC_ENABLED];
    io_apic.extend(IO_APIC_ADDRESS.to_le_bytes());
    add(&io_apic);
    for line in 0..IO_APIC_PINS {
        add(&[ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS_ID, line, io_apic_id, line]);
    }
    add(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, ISA_BUS_ID, 0, 0, 0]);
    add(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS_ID, 0, ALL_LOCAL_APICS, 1]);

    let mut table = b"PCMP".to_vec();
    let length = 44 + entries.len() as u16;
    table.extend(length.to_le_bytes());
    table.extend([SPECIFICATION_REVISION, 0]);
    table.extend(b"WISP    ");
    table.extend(b"MICRO-VM    ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    seal(&mut table, 7);
    table
}

/// Sets the byte at `checksum` so that the sum of all bytes is zero.
fn seal(bytes: &mut [u8], checksum: usize) {
    bytes[checksum] = 0;
    bytes[checksum] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn structures_have_valid_checksums() {
        for cpus in [1, 2, 64] {
            assert_eq!(sum(&floating_pointer(0xf_0010)), 0);
            let table = configuration_table(cpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        }
    }

    #[test]
    fn each_vcpu_has_a_processor_entry() {
        let table = configuration_table(64);
        let processors = table[44..].chunks(20).take_while(|entry| entry[0] == ENTRY_PROCESSOR).count();
        assert_eq!(processors, 64);
    }

    #[test]
    fn largest_table_fits_below_smbios_tables() {
        let memory = memory::allocate(64).unwrap();
        write(&memory, 64).unwrap();
        assert!(MP_TABLE_START + 16 + configuration_table(64).len() as u64 <= memory::SMBIOS_TABLES);
        let mut magic = [0; 4];
        memory.read_slice(&mut magic, GuestAddress(MP_TABLE_START)).unwrap();
        assert_eq!(&magic, b"_MP_");
    }
}
