//! The space that ext4 has for extended attributes.

/// Block size of the file systems that imports create, in bytes.
pub const BLOCK: u64 = 4 << 10;
/// Maximum size of one file's extended attributes in bytes: a block without its header and end marker.
pub const ATTRIBUTE_SPACE: u64 = BLOCK - 36;

/// Checks that these attributes fit in one block. The error is their total size in bytes.
pub fn check_attributes(attributes: &[(String, Vec<u8>)]) -> Result<(), u64> {
    let size = |name: &str, value: &[u8]| {
        // ext4 stores the namespace as a number.
        let name = name.split_once('.').map_or(0, |(_, name)| name.len());
        16 + (name.next_multiple_of(4) + value.len().next_multiple_of(4)) as u64
    };
    let total = attributes.iter().map(|(name, value)| size(name, value)).sum();
    if total > ATTRIBUTE_SPACE { Err(total) } else { Ok(()) }
}
