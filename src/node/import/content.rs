//! Detection of a file's format from its content, never from its name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::archive::{Compression, has_checksum};
use super::features;
use disk::sparse;

/// Number of bytes to examine. They include all known magic numbers, of which that of Btrfs is the last.
pub const HEAD: usize = 68 << 10;
/// Sector size, and block size of a tar archive, in bytes.
const SECTOR: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Archive(Compression),
    FileSystem(FileSystem),
    Qcow2,
    /// An unusable file, with the reason and, for most formats, the fix.
    Other(String),
}

/// File systems that the embedded kernel can mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, ext3 or ext4. Linux has one driver for all three.
    Ext4,
    Squashfs,
    Erofs,
}

impl FileSystem {
    /// Returns the name of the file system type in Linux.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Squashfs => "squashfs",
            FileSystem::Erofs => "erofs",
        }
    }

    pub fn is_read_only(self) -> bool {
        self != FileSystem::Ext4
    }
}

pub fn detect(file: &File) -> io::Result<Content> {
    let mut head = vec![0; HEAD];
    let count = sparse::read_full(&mut At { file, offset: 0 }, &mut head)?;
    let head = &head[..count];
    let compression = Compression::of(head);
    if compression == Compression::None {
        return Ok(of(head, file.metadata()?.len()));
    }
    let mut inside = vec![0; SECTOR];
    let mut content = compression.decode(At { file, offset: 0 })?;
    match sparse::read_full(&mut content, &mut inside) {
        Ok(count) if is_tar(&inside[..count]) => Ok(Content::Archive(compression)),
        Ok(_) => {
            Ok(Content::Other("it is compressed but not a tar archive: decompress it first (zstd -d, gunzip)".into()))
        }
        Err(error) => {
            Ok(Content::Other(format!("it is compressed, and damaged or truncated ({error}): download it again")))
        }
    }
}

/// Reads a file without changing its position.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

pub fn of(head: &[u8], size: u64) -> Content {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let other = |reason: &str| Content::Other(reason.into());
    if at(0, b"QFI\xfb") {
        return Content::Qcow2;
    }
    if at(SECTOR, b"EFI PART") || at(4096, b"EFI PART") {
        return Content::Other(partitions("GPT"));
    }
    if let Some(content) = mountable(head, size) {
        return content;
    }
    if is_tar(head) {
        return Content::Archive(Compression::None);
    }
    if at(0, b"XFSB") {
        return other(
            "it is an XFS file system, which the guest kernel does not support: import a tar archive of its files",
        );
    }
    if at(0x10040, b"_BHRfS_M") {
        return other(
            "it is a Btrfs file system, which the guest kernel does not support: import a tar archive of its files",
        );
    }
    if at(0x8001, b"CD001") {
        return other("it is a CD image: import a root file system, not an installer");
    }
    for (magic, name) in [(&b"KDMV"[..], "VMDK"), (b"vhdxfile", "VHDX"), (b"conectix", "VHD"), (b"<<< ", "VDI")] {
        if at(0, magic) {
            return Content::Other(format!(
                "it is a {name} image: convert it first with `qemu-img convert -O raw FILE disk.raw`"
            ));
        }
    }
    if at(0, b"\xfd7zXZ\0") || at(0, b"BZh") {
        return other("it is compressed with xz or bzip2: decompress it first (xz -d, bunzip2)");
    }
    if at(510, &[0x55, 0xaa]) {
        return Content::Other(partitions("MBR"));
    }
    other("it is neither a tar archive, a file system (ext4, SquashFS, EROFS) nor a qcow2 image")
}

fn partitions(kind: &str) -> String {
    format!(
        "it is a whole disk with a partition table ({kind}), but an image needs a single file system. Find the root \
         partition with `fdisk -l FILE`, copy it with `dd if=FILE of=root.img bs=512 skip=START count=SECTORS`, and \
         import root.img"
    )
}

/// Returns the reason why the embedded kernel cannot use the file system that starts with `head`. Returns `None` if
/// the kernel can use it or if the format is unknown.
pub fn unsupported(head: &[u8]) -> Option<String> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    if at(1024 + 0x38, &[0x53, 0xef]) {
        features::refuse_ext4(head)
    } else if at(0, b"hsqs") {
        features::refuse_squashfs(head)
    } else if at(1024, &0xe0f5_e1e2_u32.to_le_bytes()) {
        features::refuse_erofs(head)
    } else {
        None
    }
}

/// Returns the file system in `head`, or the reason why it cannot be mounted, or `None` if the format is unknown.
fn mountable(head: &[u8], size: u64) -> Option<Content> {
    let half = |at: usize| head.get(at..at + 2).map(|bytes| u16::from_le_bytes(bytes.try_into().expect("two bytes")));
    let word = |at: usize| head.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let long = |at: usize| head.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    let whole = |kind: FileSystem, length: Option<u64>| match length {
        Some(length) if length <= size => Content::FileSystem(kind),
        _ => Content::Other(format!("it is a truncated file system ({})", kind.name())),
    };
    if let Some(reason) = unsupported(head) {
        return Some(Content::Other(reason));
    }
    // linux/fs/ext4/ext4.h: the superblock is at offset 1024.
    if half(1024 + 0x38) == Some(0xef53) {
        // ext4 allows blocks of up to 64 KiB.
        let block = 1024_u64.checked_shl(word(1024 + 0x18)?).filter(|block| (1024..=65_536).contains(block));
        let has_64_bits = word(1024 + 0x60)? & 0x80 != 0;
        let high = if has_64_bits { u64::from(word(1024 + 0x150)?) } else { 0 };
        let blocks = high << 32 | u64::from(word(1024 + 4)?);
        return Some(whole(FileSystem::Ext4, block.and_then(|block| blocks.checked_mul(block))));
    }
    // linux/fs/squashfs/squashfs_fs.h.
    if head.starts_with(b"hsqs") {
        return Some(whole(FileSystem::Squashfs, long(40)));
    }
    // linux/fs/erofs/erofs_fs.h: the superblock is at offset 1024.
    if word(1024) == Some(0xe0f5_e1e2) {
        let shift = *head.get(1024 + 12)?;
        let blocks = u64::from(word(1024 + 36)?);
        return Some(whole(FileSystem::Erofs, blocks.checked_mul(1u64.checked_shl(shift.into())?)));
    }
    None
}

/// Returns true if `head` starts with a tar header. Old headers have no magic number, but all have a checksum.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..SECTOR) else { return false };
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    block.iter().any(|byte| *byte != 0) && has_checksum(&header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::testing::run;
    use std::io::Write;
    use std::path::Path;

    fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[offset..offset + bytes.len()].copy_from_slice(bytes);
        head
    }

    fn reason(content: Content) -> String {
        match content {
            Content::Other(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn detected(path: &Path) -> Content {
        detect(&File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn file_systems_are_detected_and_truncated_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (ext4, squashfs) = (dir.path().join("x.tar"), dir.path().join("y.raw"));
        run("mke2fs", &["-q", "-t", "ext4", ext4.to_str().unwrap(), "4M"]);
        // Incompressible data, so that half of the image cannot be padding.
        let noise: Vec<u8> = (0..25_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        std::fs::write(dir.path().join("files/a"), noise).unwrap();
        let files = dir.path().join("files");
        run("mksquashfs", &[files.to_str().unwrap(), squashfs.to_str().unwrap(), "-comp", "zstd", "-quiet"]);
        for (path, kind) in [(&ext4, FileSystem::Ext4), (&squashfs, FileSystem::Squashfs)] {
            assert_eq!(detected(path), Content::FileSystem(kind));
            let length = path.metadata().unwrap().len();
            File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
            let reason = reason(detected(path));
            assert!(reason.contains("truncated"), "{reason}");
        }
    }

    #[test]
    fn partitioned_disk_is_refused_with_fix() {
        for head in [with(512, b"EFI PART"), with(510, &[0x55, 0xaa])] {
            let reason = reason(of(&head, 1 << 30));
            assert!(reason.contains("partition table") && reason.contains("dd if="), "{reason}");
        }
    }

    #[test]
    fn unmountable_file_systems_are_named() {
        for (offset, magic, name) in
            [(0, &b"XFSB"[..], "XFS"), (0x10040, b"_BHRfS_M", "Btrfs"), (0x8001, b"CD001", "CD")]
        {
            assert!(reason(of(&with(offset, magic), 1 << 30)).contains(name));
        }
        let mut lz4 = with(0, b"hsqs");
        lz4[20] = 5;
        lz4[28] = 4;
        assert!(reason(of(&lz4, 1 << 30)).contains("mksquashfs"));
    }

    #[test]
    fn erofs_superblock_is_detected() {
        let mut head = with(1024, &0xe0f5_e1e2_u32.to_le_bytes());
        head[1024 + 12] = 12;
        head[1024 + 36] = 16;
        assert_eq!(of(&head, 65536), Content::FileSystem(FileSystem::Erofs));
        assert!(reason(of(&head, 65535)).contains("truncated"));
    }

    #[test]
    fn other_formats_and_garbage_are_refused() {
        assert!(reason(of(&with(0, b"KDMV"), 1 << 20)).contains("VMDK"));
        assert!(reason(of(&[], 0)).contains("neither"));
        assert!(reason(of(&with(0, b"hello"), 1 << 20)).contains("neither"));
        assert!(reason(of(&with(0, b"\xfd7zXZ\0"), 1 << 20)).contains("xz -d"));
    }

    #[test]
    fn compressed_file_must_be_archive() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&zstd::encode_all(&[0; 100_000][..], 1).unwrap()).unwrap();
        assert!(reason(detect(&file).unwrap()).contains("decompress"));
        file.set_len(10).unwrap();
        assert!(reason(detect(&file).unwrap()).contains("truncated"));
    }

    #[test]
    fn ext4_block_size_out_of_range_is_refused() {
        let mut bytes = vec![0; 2048];
        bytes[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        for shift in [7_u8, 53, 54, 64, 255] {
            bytes[1024 + 0x18] = shift;
            assert!(!reason(of(&bytes, u64::MAX)).is_empty(), "{shift}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_heads_never_panic(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048),
            magic in 0usize..4,
            size: u64,
        ) {
            let mut bytes = bytes;
            let (at, value): (usize, &[u8]) =
                [(0, b"hsqs" as &[u8]), (1024 + 0x38, &[0x53, 0xef]), (1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (0, b"")][magic];
            if bytes.len() >= at + value.len() {
                bytes[at..at + value.len()].copy_from_slice(value);
            }
            of(&bytes, size);
        }
    }
}
