//! Repairs the refcounts of a qcow2 file whose writer was killed, before the file is written again.
//!
//! imago keeps refcounts in memory until a flush, but links a new table in the file at once. If the process is killed
//! in between, the file refers to clusters that it counts as free. Later writes would allocate and overwrite them.
//! Every writable open therefore marks all referenced clusters as used: it reads a 64 KiB table per 512 MiB of disk.
//!
//! Unreferenced clusters are left as they are, because they only waste space. QEMU's `docs/interop/qcow2.txt` specifies
//! the format.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bits of a table entry that hold an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// External data files and extended L2 entries. imago refuses both.
const OTHER_LAYOUT: u64 = 1 << 2 | 1 << 4;
/// Refcounts of 16 bits, the common width. Images with another width are left alone.
const REFCOUNT_ORDER: u32 = 4;
/// Maximum sizes of the tables, the same as QEMU's.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// Repairs the refcounts of a qcow2 file. Returns the number of referenced clusters that were not counted as used.
pub fn fix(file: &File) -> io::Result<u64> {
    let Some(header) = Header::read(file)? else { return Ok(0) };
    let mut refcounts = Refcounts::read(file, &header)?;
    refcounts.mark(0, 1)?;
    refcounts.mark(header.refcount_table, header.refcount_table_bytes)?;
    for block in refcounts.table.clone() {
        refcounts.mark(block & OFFSET, header.cluster_size())?;
    }
    let l1 = words(file, header.l1_table, header.l1_entries * 8)?;
    refcounts.mark(header.l1_table, header.l1_entries * 8)?;
    for table in l1.iter().map(|entry| entry & OFFSET).filter(|table| *table != 0) {
        refcounts.mark(table, header.cluster_size())?;
        for entry in words(file, table, header.cluster_size())? {
            let (offset, length) = header.extent(entry);
            refcounts.mark(offset, length)?;
        }
    }
    refcounts.write()
}

#[derive(Debug)]
struct Header {
    cluster_bits: u32,
    l1_table: u64,
    l1_entries: u64,
    refcount_table: u64,
    refcount_table_bytes: u64,
}

impl Header {
    /// Returns `None` for an image that is left alone: its refcounts have another width, or imago refuses to open it.
    fn read(file: &File) -> io::Result<Option<Header>> {
        let mut bytes = [0; 104];
        let read = file.read_at(&mut bytes, 0)?;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let (version, cluster_bits) = (word(4), word(20));
        let version_3 = version == 3 && read == bytes.len();
        if &bytes[..4] != b"QFI\xfb" || !(version == 2 || version_3) || !(9..=21).contains(&cluster_bits) {
            return Ok(None);
        }
        if version_3 && (long(72) & OTHER_LAYOUT != 0 || word(96) != REFCOUNT_ORDER) {
            return Ok(None);
        }
        let header = Header {
            cluster_bits,
            l1_entries: word(36).into(),
            l1_table: long(40),
            refcount_table: long(48),
            refcount_table_bytes: u64::from(word(56)) << cluster_bits,
        };
        let too_large = header.l1_entries * 8 > MAX_L1_BYTES || header.refcount_table_bytes > MAX_REFCOUNT_TABLE_BYTES;
        if too_large { Err(unsound("its tables are too large")) } else { Ok(Some(header)) }
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns the offset and length that an L2 entry refers to. The length is 0 if the entry is empty.
    fn extent(&self, entry: u64) -> (u64, u64) {
        if entry & COMPRESSED == 0 {
            let offset = entry & OFFSET;
            return (offset, if offset == 0 { 0 } else { self.cluster_size() });
        }
        // The bits between the flags and the offset hold the number of additional sectors.
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
        (offset, sectors * 512 - offset % 512)
    }
}

/// The refcounts of an image. Blocks are loaded on demand.
struct Refcounts<'a> {
    file: &'a File,
    cluster_bits: u32,
    table: Vec<u64>,
    blocks: BTreeMap<u64, Block>,
    repaired: u64,
}

/// A refcount block, one cluster long.
struct Block {
    offset: u64,
    counts: Vec<u8>,
    changed: bool,
}

impl<'a> Refcounts<'a> {
    fn read(file: &'a File, header: &Header) -> io::Result<Refcounts<'a>> {
        let mut table = words(file, header.refcount_table, header.refcount_table_bytes)?;
        // Most tables end with entries that have no block, which are dropped. Such entries in between are kept.
        while table.last() == Some(&0) {
            table.pop();
        }
        Ok(Refcounts { file, cluster_bits: header.cluster_bits, table, blocks: BTreeMap::new(), repaired: 0 })
    }

    fn mark(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let end = offset.checked_add(length - 1).ok_or_else(|| unsound("an offset in it does not fit in 64 bits"))?;
        (offset >> self.cluster_bits..=end >> self.cluster_bits).try_for_each(|cluster| self.mark_cluster(cluster))
    }

    fn mark_cluster(&mut self, cluster: u64) -> io::Result<()> {
        let per_block = 1_u64 << (self.cluster_bits - 1);
        let (number, index) = (cluster / per_block, (cluster % per_block * 2) as usize);
        let block = match self.blocks.entry(number) {
            std::collections::btree_map::Entry::Occupied(block) => block.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let offset = usize::try_from(number).ok().and_then(|number| self.table.get(number));
                let offset = offset.map_or(0, |offset| offset & OFFSET);
                if offset == 0 {
                    return Err(unsound("it refers to a cluster without a refcount"));
                }
                let mut counts = vec![0; 1 << self.cluster_bits];
                self.file.read_exact_at(&mut counts, offset)?;
                place.insert(Block { offset, counts, changed: false })
            }
        };
        let count = &mut block.counts[index..index + 2];
        if count == [0, 0] {
            count.copy_from_slice(&1_u16.to_be_bytes());
            block.changed = true;
            self.repaired += 1;
        }
        Ok(())
    }

    /// Writes the changed blocks durably. Returns the number of refcounts changed.
    fn write(self) -> io::Result<u64> {
        for block in self.blocks.values().filter(|block| block.changed) {
            self.file.write_all_at(&block.counts, block.offset)?;
        }
        if self.repaired > 0 {
            self.file.sync_all()?;
        }
        Ok(self.repaired)
    }
}

/// Reads big-endian words.
fn words(file: &File, offset: u64, length: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset)?;
    let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("a chunk has 8 bytes"));
    Ok(bytes.chunks_exact(8).map(word).collect())
}

fn unsound(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// Builds an image with clusters of 512 bytes: header, refcount table, refcount block, L1 table, L2 table, data.
    fn image(counts: &[u16]) -> Vec<u8> {
        let mut bytes = vec![0; 6 * 512];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(20, &9_u32.to_be_bytes());
        put(36, &1_u32.to_be_bytes());
        put(40, &(3 * 512_u64).to_be_bytes());
        put(48, &512_u64.to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(512, &(2 * 512_u64).to_be_bytes());
        put(3 * 512, &((4 * 512) | (1_u64 << 63)).to_be_bytes());
        put(4 * 512, &((5 * 512) | (1_u64 << 63)).to_be_bytes());
        for (index, count) in counts.iter().enumerate() {
            put(2 * 512 + index * 2, &count.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn referenced_clusters_are_counted_and_others_left() {
        let file = file(&image(&[1, 1, 1, 1, 0, 0, 7, 1]));
        assert_eq!(fix(&file).unwrap(), 2);
        let mut counts = [0; 16];
        file.read_exact_at(&mut counts, 2 * 512).unwrap();
        assert_eq!(counts, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 7, 0, 1]);
        assert_eq!(fix(&file).unwrap(), 0);
    }

    #[test]
    fn compressed_cluster_counts_every_cluster_it_spans() {
        let mut bytes = image(&[1; 6]);
        // Two sectors: the one with the last byte of cluster 5, and the next one.
        let entry = COMPRESSED | 1 << 61 | (6 * 512 - 1);
        bytes[4 * 512..4 * 512 + 8].copy_from_slice(&entry.to_be_bytes());
        assert_eq!(fix(&file(&bytes)).unwrap(), 1);
    }

    #[test]
    fn non_qcow2_file_is_left_unchanged() {
        for bytes in [&b""[..], b"QFI\xfb", &[7; 4096]] {
            assert_eq!(fix(&file(bytes)).unwrap(), 0);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_images_are_repaired_or_refused(
            changes in proptest::collection::vec((0_usize..6 * 512, any::<u8>()), 0..40),
        ) {
            let mut bytes = image(&[1; 6]);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = fix(&file(&bytes));
        }
    }
}
