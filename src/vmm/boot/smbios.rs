//! SMBIOS tables (System Management BIOS Reference Specification 3.6). Linux shows them in `/sys/class/dmi/id`, and
//! programs use them to detect a cloud.
//!
//! The tables are a 64-bit entry point, and one structure each for the firmware, the system, its board and its chassis.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::{GuestMemory, SMBIOS_START, SMBIOS_TABLES, SMBIOS_TABLES_SIZE};
use machine::config::SystemIdentity;

/// The version in the entry point. Since 2.6, the first fields of a UUID are little-endian.
const VERSION: [u8; 3] = [3, 6, 0];
/// The length of the entry point (section 5.2.2).
const ENTRY_LENGTH: u8 = 24;
/// Structure types (section 6.3).
const FIRMWARE: u8 = 0;
const SYSTEM: u8 = 1;
const BOARD: u8 = 2;
const CHASSIS: u8 = 3;
const END: u8 = 127;
/// Firmware characteristics (section 7.1.1): not supported. Second extension byte (7.1.2.2): virtual machine.
const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
const VIRTUAL_MACHINE: u8 = 1 << 4;
/// The wake-up type (section 7.2.2): power switch.
const POWER_SWITCH: u8 = 6;
/// Board features (section 7.3.1): hosting board. Board type (section 7.3.2): motherboard.
const HOSTING: u8 = 1 << 0;
const MOTHERBOARD: u8 = 0x0a;
/// Chassis type "other", states "safe", and security status "none" (sections 7.4.1 to 7.4.3).
const OTHER: u8 = 1;
const SAFE: u8 = 3;
const NO_SECURITY: u8 = 3;

pub fn write(memory: &GuestMemory, identity: &SystemIdentity) -> Result<(), BootError> {
    let failed = BootError::Table("SMBIOS tables");
    let tables = structures(identity);
    let length = u32::try_from(tables.len()).unwrap_or(u32::MAX);
    if u64::from(length) > SMBIOS_TABLES_SIZE {
        return Err(failed);
    }
    let written = memory
        .write_slice(&tables, GuestAddress(SMBIOS_TABLES))
        .and_then(|()| memory.write_slice(&entry_point(length), GuestAddress(SMBIOS_START)));
    written.map_err(|_| failed)
}

fn entry_point(length: u32) -> Vec<u8> {
    let mut bytes = b"_SM3_\0".to_vec();
    bytes.push(ENTRY_LENGTH);
    bytes.extend(VERSION);
    // The entry point's revision, and a reserved byte.
    bytes.extend([1, 0]);
    bytes.extend(length.to_le_bytes());
    bytes.extend(SMBIOS_TABLES.to_le_bytes());
    bytes[5] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    bytes
}

fn structures(identity: &SystemIdentity) -> Vec<u8> {
    let SystemIdentity { manufacturer, product, uuid, asset_tag } = identity;
    let mut tables = Vec::new();

    let mut firmware = Structure::new(FIRMWARE);
    firmware.text(manufacturer).text("1.0").bytes(&[0, 0]).text("10/16/2017").bytes(&[0]);
    firmware
        .bytes(&CHARACTERISTICS_NOT_SUPPORTED.to_le_bytes())
        .bytes(&[0, VIRTUAL_MACHINE])
        .bytes(&[1, 0, 0xff, 0xff]);
    firmware.end(&mut tables);

    let mut system = Structure::new(SYSTEM);
    system.text(manufacturer).text(product).text("").text(&text(uuid)).bytes(&little_endian(*uuid));
    system.bytes(&[POWER_SWITCH]).text("").text("");
    system.end(&mut tables);

    let chassis_handle = u16::from(CHASSIS);
    let mut board = Structure::new(BOARD);
    board.text(manufacturer).text("").text("").text("").text(asset_tag).bytes(&[HOSTING]).text("");
    board.bytes(&chassis_handle.to_le_bytes()).bytes(&[MOTHERBOARD, 0]);
    board.end(&mut tables);

    let mut chassis = Structure::new(CHASSIS);
    chassis.text(manufacturer).bytes(&[OTHER]).text("").text("").text(manufacturer);
    chassis.bytes(&[SAFE, SAFE, SAFE, NO_SECURITY]).bytes(&[0; 4]).bytes(&[0, 0, 0, 0]).text("");
    chassis.end(&mut tables);

    Structure::new(END).end(&mut tables);
    tables
}

fn text(uuid: &[u8; 16]) -> String {
    let digits: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Returns a UUID in SMBIOS byte order (section 7.2.1): its first three fields are little-endian.
fn little_endian(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

/// A structure: a header, fields, and the strings that the fields refer to by number (section 6.1).
struct Structure {
    kind: u8,
    fields: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8) -> Structure {
        Structure { kind, fields: Vec::new(), texts: Vec::new(), count: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Structure {
        self.fields.extend(bytes);
        self
    }

    /// Appends a string field with the number of `text`, which is 0 for an empty string.
    fn text(&mut self, text: &str) -> &mut Structure {
        if text.is_empty() {
            return self.bytes(&[0]);
        }
        self.count += 1;
        self.texts.extend(text.bytes().filter(|byte| *byte != 0).chain([0]));
        let number = self.count;
        self.bytes(&[number])
    }

    /// Appends the structure to `tables`. Its handle is the same number as its type.
    fn end(&self, tables: &mut Vec<u8>) {
        tables.extend([self.kind, 4 + self.fields.len() as u8]);
        tables.extend(u16::from(self.kind).to_le_bytes());
        tables.extend(&self.fields);
        tables.extend(&self.texts);
        // An empty string ends the list of strings. A structure without strings ends with two NULs.
        tables.extend(if self.texts.is_empty() { &[0, 0][..] } else { &[0] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn identity() -> SystemIdentity {
        SystemIdentity {
            manufacturer: "Amazon EC2".into(),
            product: "t3.micro".into(),
            uuid: 0xec20_1234_5678_9abc_def0_0000_0000_0001_u128.to_be_bytes(),
            asset_tag: "i-0123456789abcdef0".into(),
        }
    }

    /// Parses structures: type, formatted part, strings.
    fn parse(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = usize::from(bytes[1]);
            let texts = &bytes[length..];
            let end = texts.windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
            let texts = String::from_utf8(texts[..end].to_vec()).unwrap();
            let texts = texts.split('\0').filter(|text| !text.is_empty()).map(String::from).collect();
            found.push((bytes[0], bytes[..length].to_vec(), texts));
            bytes = &bytes[length + end..];
        }
        found
    }

    #[test]
    fn entry_point_has_valid_checksum_and_address() {
        let memory = memory::allocate(64).unwrap();
        write(&memory, &identity()).unwrap();
        let mut entry = [0; 24];
        memory.read_slice(&mut entry, GuestAddress(SMBIOS_START)).unwrap();
        assert_eq!((&entry[..5], entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte))), (&b"_SM3_"[..], 0));
        let length = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let mut tables = vec![0; length];
        let address = u64::from_le_bytes(entry[16..24].try_into().unwrap());
        memory.read_slice(&mut tables, GuestAddress(address)).unwrap();
        assert_eq!(tables, structures(&identity()));
    }

    #[test]
    fn structures_have_specified_lengths() {
        let found = parse(&structures(&identity()));
        let lengths: Vec<(u8, usize)> = found.iter().map(|(kind, fields, _)| (*kind, fields.len())).collect();
        assert_eq!(lengths, [(FIRMWARE, 24), (SYSTEM, 27), (BOARD, 15), (CHASSIS, 22), (END, 4)]);
        assert_eq!(found[1].2, ["Amazon EC2", "t3.micro", "ec201234-5678-9abc-def0-000000000001"]);
        assert_eq!(found[1].1[8..16], [0x34, 0x12, 0x20, 0xec, 0x78, 0x56, 0xbc, 0x9a]);
        assert_eq!(found[2].2, ["Amazon EC2", "i-0123456789abcdef0"]);
        assert_eq!((found[2].1[8], found[3].1[8]), (2, 2));
    }

    #[test]
    fn oversized_strings_are_refused() {
        let memory = memory::allocate(64).unwrap();
        let long = SystemIdentity { asset_tag: "x".repeat(SMBIOS_TABLES_SIZE as usize), ..identity() };
        assert!(matches!(write(&memory, &long), Err(BootError::Table(_))));
    }
}
