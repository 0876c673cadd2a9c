//! Parses the driver's memory statistics (section 5.5.6.3).

use machine::control::GuestMemoryRecord;

/// The size of an entry: a tag of 16 bits and a value of 64 bits.
const ENTRY: usize = 10;
/// The maximum size of statistics in bytes. Linux sends 16 different tags.
pub(super) const MAX_SIZE: usize = 64 * ENTRY;

/// Tags of values in bytes.
const MEMFREE: u16 = 4;
const MEMTOT: u16 = 5;
const AVAIL: u16 = 6;

/// Returns the known values of `bytes`. Missing values are 0, and an incomplete entry at the end is ignored.
pub(super) fn parse(bytes: &[u8]) -> GuestMemoryRecord {
    let mut record = GuestMemoryRecord::default();
    for entry in bytes.chunks_exact(ENTRY) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let value = u64::from_le_bytes(entry[2..].try_into().expect("eight bytes"));
        match tag {
            MEMFREE => record.free_bytes = value,
            MEMTOT => record.total_bytes = value,
            AVAIL => record.available_bytes = value,
            _ => {}
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn known_tags_are_read_and_others_ignored() {
        let bytes =
            [entry(0, 9), entry(MEMFREE, 1), entry(99, 9), entry(MEMTOT, u64::MAX), entry(AVAIL, 3), vec![4; 9]];
        let expected = GuestMemoryRecord { free_bytes: 1, total_bytes: u64::MAX, available_bytes: 3 };
        assert_eq!(parse(&bytes.concat()), expected);
        assert_eq!(parse(&[]), GuestMemoryRecord::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            parse(&bytes);
        }
    }
}
