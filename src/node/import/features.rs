//! File system features that the embedded kernel does not support.
//!
//! The kernel cannot mount a root file system that has such a feature, or cannot open some of its files, so the guest
//! would not boot. An import therefore checks the superblock, and its error message includes the fix.
//!
//! The supported features come from the kernel's configuration, where a missing option is off, and from the source of
//! Linux 6.12.

const KERNEL_CONFIG: &str = include_str!("../../../images/kernel/config");

fn kernel_has(option: &str) -> bool {
    KERNEL_CONFIG.lines().any(|line| line.strip_prefix(option) == Some("=y"))
}

fn number<const SIZE: usize>(superblock: &[u8], at: usize) -> Option<u64> {
    let bytes = superblock.get(at..at + SIZE)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// `tune2fs` can remove the feature.
    Tune,
    /// The file system must be recreated without the feature.
    Remake,
}
use Removal::{Remake, Tune};

struct Feature {
    bit: u32,
    /// The name in e2fsprogs.
    name: &'static str,
    /// Kernel options that the feature requires. If empty, the feature is always refused.
    options: &'static [&'static str],
    removal: Removal,
}

const fn feature(bit: u32, name: &'static str, options: &'static [&'static str], removal: Removal) -> Feature {
    Feature { bit, name, options, removal }
}

/// Incompatible features that ext4 in Linux 6.12 supports in every configuration (linux/fs/ext4/ext4.h,
/// EXT4_FEATURE_INCOMPAT_SUPP): filetype, needs_recovery, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode,
/// metadata_csum_seed, large_dir, inline_data.
const EXT4_INCOMPAT: u32 = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000;
const EXT4_INCOMPAT_FEATURES: [Feature; 4] = [
    feature(0x1, "compression", &[], Remake),
    feature(0x1000, "dirdata", &[], Remake),
    // Kernels without the option mount the file system, but cannot open encrypted files.
    feature(0x1_0000, "encrypt", &["CONFIG_FS_ENCRYPTION"], Remake),
    feature(0x2_0000, "casefold", &["CONFIG_UNICODE"], Tune),
];
/// Read-only-compatible features that do not prevent a read-write mount in any configuration of Linux 6.12
/// (EXT4_FEATURE_RO_COMPAT_SUPP): sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink, extra_isize,
/// bigalloc, metadata_csum, orphan_present.
const EXT4_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400 | 0x1_0000;
const QUOTA: &[&str] = &["CONFIG_QUOTA", "CONFIG_QFMT_V2"];
const EXT4_RO_COMPAT_FEATURES: [Feature; 7] = [
    feature(0x80, "snapshot", &[], Remake),
    feature(0x100, "quota", QUOTA, Tune),
    feature(0x800, "replica", &[], Remake),
    // The root is mounted read-write.
    feature(0x1000, "read-only", &[], Tune),
    feature(0x2000, "project", QUOTA, Tune),
    feature(0x4000, "shared_blocks", &[], Remake),
    // Kernels without the option mount the file system, but cannot open files with verity.
    feature(0x8000, "verity", &["CONFIG_FS_VERITY"], Remake),
];

/// Returns the reason why the guest kernel cannot use the ext4 file system that starts with `head`, if there is one.
pub fn refuse_ext4(head: &[u8]) -> Option<String> {
    let word = |at: usize| number::<4>(head, 1024 + at).map(|value| value as u32);
    let (compat, incompat, ro_compat) = (word(0x5c)?, word(0x60)?, word(0x64)?);
    let block_shift = word(0x18)?;
    if incompat & 0x8 != 0 {
        return Some(
            "it is the external journal of another file system. Remove the journal from that file system with `tune2fs \
             -f -O ^has_journal FILE`, and import the file system"
                .into(),
        );
    }
    if block_shift > 2 {
        return Some(
            "it is an ext4 file system with blocks larger than 4 KiB, which the guest kernel cannot mount. Recreate it \
             with `mkfs.ext4 -b 4096`, or import a tar archive of its files"
                .into(),
        );
    }
    let missing = missing(incompat & !EXT4_INCOMPAT, &EXT4_INCOMPAT_FEATURES, 'I').chain(missing(
        ro_compat & !EXT4_RO_COMPAT,
        &EXT4_RO_COMPAT_FEATURES,
        'R',
    ));
    let missing: Vec<(String, Removal)> = missing.collect();
    if !missing.is_empty() {
        return Some(without(&missing));
    }
    let has_journal = compat & 0x4 != 0;
    // Inode number of the journal.
    if has_journal && word(0xe0)? == 0 {
        return Some(
            "it is an ext4 file system whose journal is on another device, which a guest cannot access. Move the \
             journal into the file system: `tune2fs -f -O ^has_journal FILE`, then `tune2fs -j FILE`"
                .into(),
        );
    }
    if !has_journal && incompat & 0x4 != 0 {
        return Some(
            "it is an ext4 file system that needs recovery but has no journal: repair it with `e2fsck -f FILE`".into(),
        );
    }
    if ro_compat & 0x200 != 0 && incompat & 0x40 == 0 {
        return Some(
            "it is an ext4 file system with the feature bigalloc but without extents, which the guest kernel cannot \
             mount. Recreate it with `mkfs.ext4 -O ^bigalloc`, or import a tar archive of its files"
                .into(),
        );
    }
    // CRC32C, number 1, is the only defined algorithm.
    let algorithm = head.get(1024 + 0x175).copied()?;
    if ro_compat & 0x400 != 0 && algorithm != 1 {
        return Some(format!(
            "it is an ext4 file system with the unknown checksum algorithm {algorithm}: repair it with `e2fsck -f FILE`"
        ));
    }
    let superblock = head.get(1024..2048)?;
    if ro_compat & 0x400 != 0 && mkext4::csum::superblock(superblock) != word(0x3fc)? {
        return Some(
            "it is an ext4 file system with a damaged superblock (wrong checksum): repair it with `e2fsck -f FILE`"
                .into(),
        );
    }
    None
}

/// Returns the unsupported features in `bits`. Unknown features are named as in e2fsprogs, for example FEATURE_I12.
fn missing(bits: u32, features: &[Feature], set: char) -> impl Iterator<Item = (String, Removal)> {
    (0..32).map(|number| (number, 1 << number)).filter(move |(_, bit)| bits & bit != 0).filter_map(
        move |(number, bit)| match features.iter().find(|feature| feature.bit == bit) {
            Some(feature) => {
                let is_there = !feature.options.is_empty() && feature.options.iter().all(|option| kernel_has(option));
                (!is_there).then(|| (feature.name.to_string(), feature.removal))
            }
            None => Some((format!("FEATURE_{set}{number}"), Remake)),
        },
    )
}

fn without(missing: &[(String, Removal)]) -> String {
    let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
    let options: Vec<String> = names.iter().map(|name| format!("^{name}")).collect();
    let options = options.join(",");
    let what = if names.len() == 1 { "the feature" } else { "the features" };
    let advice = if missing.iter().all(|(_, removal)| *removal == Tune) {
        format!("Remove {} with `tune2fs -O {options} FILE`", if names.len() == 1 { "it" } else { "them" })
    } else {
        format!("Recreate it with `mkfs.ext4 -O {options}`, or import a tar archive of its files")
    };
    format!(
        "it is an ext4 file system with {what} {}, which the guest kernel does not support. {advice}",
        names.join(", ")
    )
}

/// SquashFS compressors by number, with their kernel options (linux/fs/squashfs/squashfs_fs.h).
const SQUASHFS_COMPRESSORS: [(u64, &str, &str); 6] = [
    (1, "gzip", "CONFIG_SQUASHFS_ZLIB"),
    (2, "lzma", ""),
    (3, "lzo", "CONFIG_SQUASHFS_LZO"),
    (4, "xz", "CONFIG_SQUASHFS_XZ"),
    (5, "lz4", "CONFIG_SQUASHFS_LZ4"),
    (6, "zstd", "CONFIG_SQUASHFS_ZSTD"),
];
/// xz filters in the order of their bits in the compressor options.
const XZ_FILTERS: [(&str, &str); 6] = [
    ("x86", "CONFIG_XZ_DEC_X86"),
    ("powerpc", "CONFIG_XZ_DEC_POWERPC"),
    ("ia64", "CONFIG_XZ_DEC_IA64"),
    ("arm", "CONFIG_XZ_DEC_ARM"),
    ("armthumb", "CONFIG_XZ_DEC_ARMTHUMB"),
    ("sparc", "CONFIG_XZ_DEC_SPARC"),
];

/// Works like [`refuse_ext4`], for SquashFS.
pub fn refuse_squashfs(head: &[u8]) -> Option<String> {
    const ADVICE: &str = "recreate it with `mksquashfs DIRECTORY FILE -comp zstd`";
    let version = number::<2>(head, 28)?;
    if version != 4 {
        return Some(format!(
            "it is a SquashFS file system of version {version}, but the guest kernel supports only version 4: {ADVICE}"
        ));
    }
    let id = number::<2>(head, 20)?;
    let compressor = SQUASHFS_COMPRESSORS.iter().find(|(number, ..)| *number == id);
    let name = compressor.map_or_else(|| format!("compressor {id}"), |(_, name, _)| (*name).to_string());
    if !compressor.is_some_and(|(_, _, option)| kernel_has(option)) {
        return Some(format!(
            "it is a SquashFS file system compressed with {name}, which the guest kernel cannot read: {ADVICE}"
        ));
    }
    let has_options = number::<2>(head, 24)? & 0x400 != 0;
    if name == "xz" && has_options {
        // The compressor options follow the superblock: length of the metadata block, dictionary size, filters.
        let used = number::<4>(head, 96 + 2 + 4)?;
        let lacking =
            XZ_FILTERS.iter().enumerate().find(|(bit, (_, option))| used >> bit & 1 != 0 && !kernel_has(option));
        if let Some((_, (filter, _))) = lacking {
            return Some(format!(
                "it is a SquashFS file system compressed with xz and the filter {filter} (-Xbcj), which the guest \
                 kernel cannot read: {ADVICE}"
            ));
        }
    }
    None
}

/// Incompatible features that Linux 6.12 supports (linux/fs/erofs/erofs_fs.h, EROFS_FEATURE_INCOMPAT_ALL).
const EROFS_INCOMPAT: u64 = 0x7f;
/// EROFS compressors in the order of their bits.
const EROFS_COMPRESSORS: [(&str, &str); 4] = [
    ("lz4", "CONFIG_EROFS_FS_ZIP"),
    ("lzma", "CONFIG_EROFS_FS_ZIP_LZMA"),
    ("deflate", "CONFIG_EROFS_FS_ZIP_DEFLATE"),
    ("zstd", "CONFIG_EROFS_FS_ZIP_ZSTD"),
];

/// Works like [`refuse_ext4`], for EROFS.
pub fn refuse_erofs(head: &[u8]) -> Option<String> {
    const ADVICE: &str = "recreate it with `mkfs.erofs -zlz4 FILE DIRECTORY`";
    let block_shift = number::<1>(head, 1024 + 12)?;
    if !(9..=12).contains(&block_shift) {
        return Some(format!(
            "it is an EROFS file system with blocks of 2^{block_shift} bytes, which the guest kernel cannot mount: \
             recreate it with `mkfs.erofs -b 4096 FILE DIRECTORY`"
        ));
    }
    let features = number::<4>(head, 1024 + 80)?;
    if features & !EROFS_INCOMPAT != 0 {
        let unknown = features & !EROFS_INCOMPAT;
        return Some(format!(
            "it is an EROFS file system with features ({unknown:#x}) that the guest kernel does not support: {ADVICE}, \
             using a version of mkfs.erofs that is not newer than Linux 6.12"
        ));
    }
    // With the feature compr_cfgs, the field holds the compressors' bits. Without it, the field is the LZ4 distance.
    let used = if features & 0x2 != 0 { number::<2>(head, 1024 + 84)? } else { 0 };
    for bit in 0..16 {
        let (name, option) = EROFS_COMPRESSORS.get(bit).copied().unwrap_or(("an unknown compressor", ""));
        if used >> bit & 1 != 0 && !kernel_has(option) {
            return Some(format!(
                "it is an EROFS file system compressed with {name}, which the guest kernel cannot read: {ADVICE}"
            ));
        }
    }
    if features & 0x8 != 0 && number::<2>(head, 1024 + 86)? != 0 {
        return Some("it is an EROFS file system that keeps data in other files: recreate it without --blobdev".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::content::{self, Content};
    use crate::import::testing::run;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn image(dir: &Path, arguments: &[&str]) -> PathBuf {
        let path = dir.join("image");
        let _ = fs::remove_file(&path);
        let file = path.to_str().unwrap();
        let kind: &[&str] = if arguments.contains(&"-t") { &[] } else { &["-t", "ext4"] };
        run("mke2fs", &[&["-q", "-F"], kind, arguments, &[file, "16M"]].concat());
        path
    }

    fn refusal(path: &Path) -> Option<String> {
        match content::detect(&fs::File::open(path).unwrap()).unwrap() {
            Content::FileSystem(_) => None,
            Content::Other(reason) => Some(reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ext4_features_in_kernel_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        for features in [
            "^64bit",
            "inline_data",
            "ea_inode",
            "large_dir",
            "orphan_file",
            "mmp",
            "metadata_csum_seed",
            "bigalloc",
            "stable_inodes",
            "fast_commit",
            "^has_journal",
            "^metadata_csum,uninit_bg",
            "sparse_super2",
            "meta_bg,^resize_inode",
        ] {
            assert_eq!(refusal(&image(dir.path(), &["-O", features])), None, "{features}");
        }
        for arguments in [&["-b", "1024"][..], &["-b", "2048"], &["-t", "ext2"], &["-t", "ext3"]] {
            assert_eq!(refusal(&image(dir.path(), arguments)), None, "{arguments:?}");
        }
    }

    #[test]
    fn unsupported_ext4_features_are_refused_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        for (features, command) in [
            ("quota", "tune2fs -O ^quota FILE"),
            ("quota,project", "tune2fs -O ^quota,^project FILE"),
            ("casefold", "tune2fs -O ^casefold FILE"),
        ] {
            let path = image(dir.path(), &["-O", features]);
            let reason = refusal(&path).unwrap();
            assert!(reason.contains(&features.replace(',', ", ")) && reason.contains(command), "{reason}");
            let arguments: Vec<&str> = command.split(' ').skip(1).collect();
            run("tune2fs", &[&arguments[..2], &[path.to_str().unwrap()]].concat());
            assert_eq!(refusal(&path), None, "{command}");
        }
        for feature in ["verity", "encrypt"] {
            let path = image(dir.path(), &["-O", feature]);
            let reason = refusal(&path).unwrap();
            assert!(reason.contains(feature) && reason.contains(&format!("mkfs.ext4 -O ^{feature}")), "{reason}");
            assert_eq!(refusal(&image(dir.path(), &["-O", &format!("^{feature}")])), None, "{feature}");
        }
    }

    #[test]
    fn unusable_ext4_root_is_refused_with_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), &["-b", "65536"]);
        assert!(refusal(&path).unwrap().contains("mkfs.ext4 -b 4096"));
        let path = image(dir.path(), &["-O", "journal_dev", "-b", "4096"]);
        assert!(refusal(&path).unwrap().contains("external journal"));
        // Superblock fields for an external journal, and for features that mke2fs cannot create.
        for (at, value, part) in [
            (0xe0, 0u32, "tune2fs -f -O ^has_journal"),
            (0x5c, 0x38, "needs recovery"),
            (0x64, 0x1000 | 0x46b, "tune2fs -O ^read-only"),
            (0x64, 0x4000 | 0x46b, "mkfs.ext4 -O ^shared_blocks"),
            (0x60, 0x8000_02c2, "FEATURE_I31"),
            (0x64, 0x8000_046b, "FEATURE_R31"),
            (0x60, 0x282, "without extents"),
        ] {
            let path = image(dir.path(), &["-O", if part == "without extents" { "bigalloc" } else { "64bit" }]);
            let mut bytes = fs::read(&path).unwrap();
            bytes[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
            if part == "needs recovery" {
                bytes[1024 + 0x60] |= 4;
            }
            let reason = refuse_ext4(&bytes).unwrap();
            assert!(reason.contains(part), "{part}: {reason}");
        }
        let path = image(dir.path(), &[]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[1024 + 0x60] |= 4;
        assert!(refuse_ext4(&bytes).unwrap().contains("wrong checksum"));
        let checksum = mkext4::csum::superblock(&bytes[1024..2048]);
        bytes[2044..2048].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(refuse_ext4(&bytes), None, "the kernel replays the journal");
        bytes[1024 + 0x175] = 7;
        assert!(refuse_ext4(&bytes).unwrap().contains("checksum algorithm 7"));
    }

    #[test]
    fn squashfs_with_unsupported_compressor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (files, path) = (dir.path().join("files"), dir.path().join("image"));
        fs::create_dir(&files).unwrap();
        fs::write(files.join("a"), "a").unwrap();
        for (arguments, refused) in [
            (&["-comp", "gzip"][..], None),
            (&["-comp", "xz"], None),
            (&["-comp", "xz", "-Xdict-size", "8192"], None),
            (&["-comp", "zstd"], None),
            (&["-comp", "zstd", "-Xcompression-level", "3"], None),
            (&["-comp", "lz4"], Some("lz4")),
            (&["-comp", "lzo"], Some("lzo")),
            (&["-comp", "xz", "-Xbcj", "x86"], Some("filter x86")),
        ] {
            let _ = fs::remove_file(&path);
            let places = [files.to_str().unwrap(), path.to_str().unwrap(), "-quiet", "-no-progress"];
            run("mksquashfs", &[&places, arguments].concat());
            let reason = refusal(&path);
            match refused {
                None => assert_eq!(reason, None, "{arguments:?}"),
                Some(part) => {
                    assert!(reason.is_some_and(|r| r.contains(part) && r.contains("mksquashfs")), "{arguments:?}")
                }
            }
        }
        let mut old = fs::read(&path).unwrap();
        old[28] = 3;
        assert!(refuse_squashfs(&old).unwrap().contains("version 3"));
    }

    #[test]
    fn erofs_with_unsupported_features_is_refused() {
        let head = |at: usize, value: u32| {
            let mut head = vec![0; 2048];
            head[1024 + 12] = 12;
            head[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
            head
        };
        assert_eq!(refuse_erofs(&head(80, 0x71)), None);
        assert!(refuse_erofs(&head(80, 0x80)).unwrap().contains("0x80"));
        assert!(refuse_erofs(&head(12, 14)).unwrap().contains("2^14"));
        for (compressors, part) in [(1, None), (0b10, Some("lzma")), (0b100, Some("deflate")), (0b1001, Some("zstd"))] {
            let mut head = head(80, 0x3);
            head[1024 + 84] = compressors;
            assert_eq!(refuse_erofs(&head).is_some(), part.is_some());
            assert!(refuse_erofs(&head).is_none_or(|reason| reason.contains(part.unwrap())));
        }
        let mut devices = head(80, 0x8);
        devices[1024 + 86] = 1;
        assert!(refuse_erofs(&devices).unwrap().contains("--blobdev"));
    }

    #[test]
    fn kernel_options_match_configuration() {
        assert!(kernel_has("CONFIG_EXT4_FS") && kernel_has("CONFIG_SQUASHFS_ZSTD"));
        assert!(
            !kernel_has("CONFIG_MODULES")
                && !kernel_has("CONFIG_EXT4")
                && !kernel_has("")
                && !kernel_has("CONFIG_NONE")
        );
    }
}
