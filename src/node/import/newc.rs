//! Writer for an initramfs in `newc` format (linux/Documentation/driver-api/early-userspace/buffer-format.rst).

/// Magic number of a header, the number of its fields, and the positions of those that are not zero.
const MAGIC: &str = "070701";
const FIELDS: usize = 13;
const INODE: usize = 0;
const MODE: usize = 1;
const LINKS: usize = 4;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;
const TRAILER: &str = "TRAILER!!!";
/// Executable regular file (0755).
const PROGRAM: usize = 0o100_755;

/// Returns an uncompressed archive with one program. To unpack it, the kernel only copies the content.
pub fn of_program(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(content.len() + 512);
    add(&mut archive, name, PROGRAM, content);
    add(&mut archive, TRAILER, 0, b"");
    archive
}

fn add(archive: &mut Vec<u8>, name: &str, mode: usize, content: &[u8]) {
    let mut fields = [0; FIELDS];
    fields[INODE] = 1;
    fields[MODE] = mode;
    fields[LINKS] = 1;
    fields[FILE_SIZE] = content.len();
    fields[NAME_SIZE] = name.len() + 1;
    archive.extend(MAGIC.bytes());
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend(name.bytes());
    archive.push(0);
    // Names and contents are padded to multiples of four bytes.
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_archive_has_newc_layout() {
        let archive = of_program("init", b"agent");
        assert_eq!(archive.len(), 116 + 8 + 124);
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[14..22], b"000081ed", "the mode");
        assert_eq!(&archive[54..62], b"00000005", "the size");
        assert_eq!(&archive[94..102], b"00000005", "the name's length");
        assert_eq!(&archive[110..124], b"init\0\0agent\0\0\0");
        assert_eq!(&archive[124 + 110..124 + 121], b"TRAILER!!!\0");
    }
}
