//! Sequential reader for tar archives, plain or compressed.
//!
//! Supports ustar, GNU and PAX archives: long names, PAX records ([`super::pax`]), sparse files ([`super::sparse_map`])
//! and base-256 numbers.
//!
//! The `tar` crate provides only the layout of a header: its PAX parser splits records at newlines and has no size
//! limit. Here, each size that an archive states is checked before memory is allocated.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::number::number;
use super::pax::{self, Records};
use super::sparse_map::SparseMap;
use super::{ImportError, ImportProgress, LARGEST_FILE};

/// Maximum size of the names, attributes and sparse map of one entry, in bytes.
const HEADER_LIMIT: u64 = 1 << 20;
/// Maximum size of the global PAX records in bytes. The limit is low because each entry gets a copy of them.
const GLOBAL_LIMIT: u64 = 64 << 10;
const ENTRY_LIMIT: u64 = 8 << 20;
/// Block size in bytes. A header is one block, and contents are padded to whole blocks.
const BLOCK: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // Parallel compressors start with a skippable frame instead of a data frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    pub fn decode<'a>(self, content: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let content = io::BufReader::with_capacity(128 << 10, content);
        Ok(match self {
            Compression::None => Box::new(content),
            // Parallel compressors write several gzip members.
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(content)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(content)?),
        })
    }
}

#[derive(Debug)]
pub struct TarFile {
    pub path: PathBuf,
    pub file: File,
    pub compression: Compression,
}

pub struct ArchiveEntry<'a> {
    /// Zero-based index in the archive.
    pub index: u64,
    /// GNU incremental directory entries (type `D`) are reported as `Directory`.
    pub kind: EntryType,
    pub name: Vec<u8>,
    pub target: Option<Vec<u8>>,
    /// PAX records that apply to the entry, global ones first.
    pub records: Records,
    /// Content size in bytes, including holes.
    pub size: u64,
    /// Content size in the archive in bytes, excluding holes.
    pub stored: u64,
    header: tar::Header,
    segments: &'a [(u64, u64)],
    unread: u64,
    input: &'a mut dyn Read,
}

impl ArchiveEntry<'_> {
    /// Returns a reader for the content. Must be called at most once. A read fails if the archive ends too early.
    pub fn content(&mut self) -> EntryContent<'_> {
        EntryContent {
            position: 0,
            size: self.size,
            segments: self.segments,
            unread: &mut self.unread,
            input: self.input,
        }
    }

    /// Creates an error about the entry. `reason` is a relative clause, such as "which appears twice".
    pub fn error(&self, archive: &Path, reason: impl Into<String>) -> ImportError {
        entry_error(archive, &self.name, reason)
    }

    /// Returns the permissions with the set-user-ID, set-group-ID and sticky bits.
    pub fn mode(&self) -> Result<u16, String> {
        Ok((self.field(&self.header.as_old().mode, "mode")? & 0o7777) as u16)
    }

    pub fn uid(&self) -> Result<u32, String> {
        self.id("uid", &self.header.as_old().uid, "owner ID")
    }

    pub fn gid(&self) -> Result<u32, String> {
        self.id("gid", &self.header.as_old().gid, "group ID")
    }

    /// Returns the modification time in seconds since 1970.
    pub fn modified(&self) -> Result<i64, String> {
        match self.records.get("mtime") {
            Some(value) => pax::seconds(value).ok_or_else(|| pax::not_a_number("mtime", value)),
            None => {
                let time = number(&self.header.as_old().mtime).and_then(|time| i64::try_from(time).ok());
                time.ok_or_else(|| "whose modification time is not a number".into())
            }
        }
    }

    /// Returns a device's major and minor number, or zeros if the header's format has no such fields.
    pub fn device(&self) -> Result<(u32, u32), String> {
        let fields = match (self.header.as_ustar(), self.header.as_gnu()) {
            (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
            (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
            (None, None) => return Ok((0, 0)),
        };
        let [major, minor] = [fields.0, fields.1].map(|field| self.field(field, "device number"));
        let (major, minor) = (major?, minor?);
        // The limits of Linux and ext4.
        if major > 0xfff || minor > 0xf_ffff {
            return Err(format!(
                "whose device number {major}:{minor} is out of range: the maximum is 4095 for major and 1048575 for \
                 minor"
            ));
        }
        Ok((major as u32, minor as u32))
    }

    fn id(&self, key: &str, field: &[u8], what: &str) -> Result<u32, String> {
        let id = match self.records.number(key)? {
            Some(id) => id,
            None => self.field(field, what)?,
        };
        u32::try_from(id).map_err(|_| format!("whose {what} {id} is larger than {}", u32::MAX))
    }

    fn field(&self, field: &[u8], what: &str) -> Result<u64, String> {
        let value = number(field).ok_or_else(|| format!("whose {what} is not a number"))?;
        u64::try_from(value).map_err(|_| format!("whose {what} {value} is out of range"))
    }
}

fn entry_error(archive: &Path, name: &[u8], reason: impl Into<String>) -> ImportError {
    let entry = String::from_utf8_lossy(name).into_owned();
    ImportError::Entry { path: archive.to_path_buf(), entry, reason: reason.into() }
}

/// Reader for an entry's content. Holes read as zeros.
pub struct EntryContent<'a> {
    position: u64,
    size: u64,
    segments: &'a [(u64, u64)],
    unread: &'a mut u64,
    input: &'a mut dyn Read,
}

impl Read for EntryContent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((first, rest)) = self.segments.split_first()
            && first.0 + first.1 <= self.position
        {
            self.segments = rest;
        }
        let (start, length) = self.segments.first().copied().unwrap_or((self.size, 0));
        if self.position < start {
            let count = (start - self.position).min(buffer.len() as u64) as usize;
            buffer[..count].fill(0);
            self.position += count as u64;
            return Ok(count);
        }
        let most = (start + length - self.position).min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} bytes are missing", self.unread)));
        }
        self.position += count as u64;
        *self.unread = self.unread.saturating_sub(count as u64);
        Ok(count)
    }
}

impl TarFile {
    /// Passes each entry to `visit` in order, and skips content that `visit` does not read. Damage is found only when
    /// the reader reaches it, so this can fail after `visit` has seen some entries.
    pub fn entries(
        &self,
        progress: &dyn ImportProgress,
        visit: &mut dyn FnMut(&mut ArchiveEntry) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let mut file = self.file.try_clone().map_err(ImportError::read(&self.path))?;
        io::Seek::rewind(&mut file).map_err(ImportError::read(&self.path))?;
        let counted = Counted { inner: file, progress };
        let input = self.compression.decode(counted).map_err(|error| damaged(&self.path, error.to_string()))?;
        let mut walk = Walk { path: &self.path, input, globals: Records::default(), budget: HEADER_LIMIT };
        let mut index = 0;
        while let Some(head) = walk.next()? {
            if index == ENTRY_LIMIT {
                let exceeded = format!("it has more than {ENTRY_LIMIT} entries");
                return Err(limit(&self.path, exceeded, "Import a file system image (mkfs.ext4 -d DIRECTORY) instead"));
            }
            let unread = walk.visit(head, index, visit)?;
            walk.skip(unread)?;
            index += 1;
        }
        Ok(())
    }
}

fn damaged(path: &Path, reason: impl Into<String>) -> ImportError {
    ImportError::BadArchive { path: path.to_path_buf(), reason: reason.into() }
}

fn limit(path: &Path, exceeded: String, advice: &'static str) -> ImportError {
    ImportError::Limit { path: path.to_path_buf(), exceeded, advice }
}

enum Fault {
    /// A relative clause about the entry, such as "whose size is not a number".
    ArchiveEntry(String),
    Import(ImportError),
}

impl From<String> for Fault {
    fn from(reason: String) -> Fault {
        Fault::ArchiveEntry(reason)
    }
}

impl From<ImportError> for Fault {
    fn from(error: ImportError) -> Fault {
        Fault::Import(error)
    }
}

struct Head {
    header: tar::Header,
    name: Vec<u8>,
    target: Option<Vec<u8>>,
    records: Records,
    map: SparseMap,
    /// Content bytes from here to the next header, excluding padding.
    stored: u64,
}

struct Walk<'a> {
    path: &'a Path,
    input: Box<dyn Read + 'a>,
    globals: Records,
    /// Bytes that the headers of the current entry may still take.
    budget: u64,
}

impl Walk<'_> {
    /// Reads the next entry's headers. Returns `None` at the end-of-archive marker.
    fn next(&mut self) -> Result<Option<Head>, ImportError> {
        self.budget = HEADER_LIMIT.saturating_sub(self.globals.size());
        let (mut long_name, mut long_target) = (None, None);
        let mut records = self.globals.clone();
        let mut pending = false;
        loop {
            let header = match self.header()? {
                Some(header) => header,
                None if pending => return Err(damaged(self.path, "it ends between the headers of an entry")),
                None => return Ok(None),
            };
            let shown = header.path_bytes().into_owned();
            match header.entry_type() {
                EntryType::GNULongName => long_name = Some(self.long(&header)?),
                EntryType::GNULongLink => long_target = Some(self.long(&header)?),
                EntryType::XGlobalHeader => {
                    let parsed = Records::parse(&self.extension(&header)?);
                    let parsed = parsed.map_err(|reason| entry_error(self.path, &shown, reason))?;
                    self.globals.extend(parsed.clone());
                    if self.globals.size() > GLOBAL_LIMIT {
                        let exceeded = format!("its global PAX records take more than {GLOBAL_LIMIT} bytes");
                        return Err(limit(self.path, exceeded, "Create the archive without them"));
                    }
                    records.extend(parsed);
                    // `pending` stays unchanged: the archive may end after global records.
                    continue;
                }
                // Solaris uses the type `X` for the same header.
                EntryType::XHeader | EntryType::__Nonexhaustive(b'X') => {
                    let parsed = Records::parse(&self.extension(&header)?);
                    records.extend(parsed.map_err(|reason| entry_error(self.path, &shown, reason))?);
                }
                // A volume label, which GNU tar writes as an entry without a file.
                EntryType::__Nonexhaustive(b'V') => {
                    self.extension(&header)?;
                    continue;
                }
                _ => {
                    let name = records.get("GNU.sparse.name").or_else(|| records.get("path")).map(<[u8]>::to_vec);
                    let name = name.or(long_name).unwrap_or(shown);
                    let target = records.get("linkpath").map(<[u8]>::to_vec).or(long_target);
                    let target = target.or_else(|| header.link_name_bytes().map(|target| target.into_owned()));
                    let content = self.content(&header, &records).map_err(|fault| match fault {
                        Fault::ArchiveEntry(reason) => entry_error(self.path, &name, reason),
                        Fault::Import(error) => error,
                    })?;
                    let (map, stored) = content;
                    return Ok(Some(Head { header, name, target, records, map, stored }));
                }
            }
            pending = true;
        }
    }

    /// Passes an entry to `visit`. Returns the number of bytes, including padding, to skip to reach the next header.
    fn visit(
        &mut self,
        head: Head,
        index: u64,
        visit: &mut dyn FnMut(&mut ArchiveEntry) -> Result<(), ImportError>,
    ) -> Result<u64, ImportError> {
        let kind = match head.header.entry_type() {
            EntryType::__Nonexhaustive(b'D') => EntryType::Directory,
            kind => kind,
        };
        let mut entry = ArchiveEntry {
            index,
            kind,
            name: head.name,
            target: head.target,
            records: head.records,
            size: head.map.size,
            stored: head.stored,
            header: head.header,
            segments: &head.map.segments,
            unread: head.stored,
            input: &mut self.input,
        };
        if entry.size > LARGEST_FILE || entry.stored > LARGEST_FILE {
            return Err(entry.error(self.path, format!("which is larger than {LARGEST_FILE} bytes")));
        }
        visit(&mut entry)?;
        Ok(entry.unread + padding(head.stored))
    }

    /// Returns the sparse map of an entry's content and the number of stored bytes.
    fn content(&mut self, header: &tar::Header, records: &Records) -> Result<(SparseMap, u64), Fault> {
        let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
        let size = match records.number("size")? {
            Some(size) => size,
            None => size.ok_or_else(|| "whose size is not a number".to_string())?,
        };
        let kind = header.entry_type();
        // As in GNU tar, a hard link has no content, whatever its size field says.
        let stored = if kind == EntryType::Link { 0 } else { size };
        if kind == EntryType::GNUSparse {
            let map = SparseMap::of_gnu(header, stored, &mut || self.header_block().map_err(Fault::from))?;
            return Ok((map, stored));
        }
        if records.get("GNU.sparse.major").is_some() {
            let version = (records.number("GNU.sparse.major")?, records.number("GNU.sparse.minor")?);
            let size = records.number("GNU.sparse.realsize")?;
            let (Some(size), (Some(1), Some(0))) = (size, version) else {
                return Err(Fault::ArchiveEntry(
                    "which has a sparse format other than GNU.sparse 0.0, 0.1 and 1.0".into(),
                ));
            };
            let block = &mut || self.header_block().map_err(Fault::from);
            let (map, read) = SparseMap::of_content(size, stored, block)?;
            return Ok((map, stored - read));
        }
        let map = SparseMap::of_records(records, stored)?.unwrap_or_else(|| SparseMap::whole(stored));
        Ok((map, stored))
    }

    /// Returns the next header, or `None` at the end-of-archive marker.
    fn header(&mut self) -> Result<Option<tar::Header>, ImportError> {
        let Some(block) = self.block()? else { return Err(damaged(self.path, "it has no end-of-archive marker")) };
        self.charge(BLOCK as u64)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        if has_checksum(&header) { Ok(Some(header)) } else { Err(damaged(self.path, "a header's checksum is wrong")) }
    }

    /// Reads the content of a header of type `L` or `K`: a name with an optional NUL at the end.
    fn long(&mut self, header: &tar::Header) -> Result<Vec<u8>, ImportError> {
        let mut name = self.extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Reads the content of a header that describes the next entry.
    fn extension(&mut self, header: &tar::Header) -> Result<Vec<u8>, ImportError> {
        let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| damaged(self.path, "the size of an extended header is not a number"))?;
        self.charge(size)?;
        let mut content = vec![0; size as usize];
        self.fill(&mut content)?;
        self.skip(padding(size))?;
        Ok(content)
    }

    /// Reads a block of the sparse map, which precedes the data.
    fn header_block(&mut self) -> Result<[u8; BLOCK], ImportError> {
        self.charge(BLOCK as u64)?;
        self.block()?.ok_or_else(|| damaged(self.path, "it ends within a sparse map"))
    }

    fn charge(&mut self, bytes: u64) -> Result<(), ImportError> {
        let left = self.budget.checked_sub(bytes).ok_or_else(|| {
            let exceeded =
                format!("the names, attributes and sparse map of one entry take more than {HEADER_LIMIT} bytes");
            let advice = "Create the archive without extended attributes (tar --no-xattrs) and without --sparse";
            limit(self.path, exceeded, advice)
        })?;
        self.budget = left;
        Ok(())
    }

    /// Returns the next block, or `None` at the end of the file.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ImportError> {
        let mut block = [0; BLOCK];
        let read = disk::sparse::read_full(&mut self.input, &mut block);
        match read.map_err(|error| damaged(self.path, error.to_string()))? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            count => Err(damaged(self.path, format!("its last block has only {count} of {BLOCK} bytes"))),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ImportError> {
        self.input.read_exact(buffer).map_err(|error| damaged(self.path, error.to_string()))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ImportError> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink());
        let skipped = skipped.map_err(|error| damaged(self.path, error.to_string()))?;
        if skipped < bytes {
            return Err(damaged(self.path, format!("{} bytes are missing at the end", bytes - skipped)));
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// Returns true if a header's checksum is correct. Sums of signed bytes are accepted too, because some old
/// programs wrote them.
pub(super) fn has_checksum(header: &tar::Header) -> bool {
    let bytes =
        || header.as_bytes().iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: i128 = bytes().map(i128::from).sum();
    let signed: i128 = bytes().map(|byte| i128::from(byte.cast_signed())).sum();
    number(&header.as_old().cksum).is_some_and(|stated| stated == unsigned || stated == signed)
}

struct Counted<'a> {
    inner: File,
    progress: &'a dyn ImportProgress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8], compression: Compression) -> TarFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TarFile { path: "archive".into(), file, compression }
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn names(file: &TarFile) -> Result<Vec<String>, ImportError> {
        let mut names = Vec::new();
        file.entries(&(), &mut |entry| {
            names.push(String::from_utf8_lossy(&entry.name).into_owned());
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn plain_and_compressed_archives_have_same_entries() {
        let long = "d/".repeat(90) + "file";
        let bytes = archive(&[("a", &[1; 700]), (&long, b"")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        for bytes in [bytes, gzip.finish().unwrap(), zstd] {
            let compression = Compression::of(&bytes);
            assert_eq!(names(&file(&bytes, compression)).unwrap(), ["a", &long]);
        }
    }

    #[test]
    fn truncated_archive_is_refused() {
        let bytes = archive(&[("a", &[1; 700]), ("b", &[2; 10])]);
        let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        for length in [1, 100, 512, 600, 1024, 1536, 1600, 2048, 2500] {
            let error = names(&file(&bytes[..length], Compression::None)).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{length}: {error}");
        }
        assert!(names(&file(&zstd[..zstd.len() - 1], Compression::Zstd)).is_err());
    }

    #[test]
    fn truncated_content_is_a_read_error() {
        let bytes = archive(&[("a", &[1; 700])]);
        let error = file(&bytes[..600], Compression::None).entries(&(), &mut |entry| {
            let read = entry.content().read_to_end(&mut Vec::new());
            read.map(|_| ()).map_err(ImportError::read(Path::new("archive")))
        });
        assert!(error.unwrap_err().to_string().contains("612 bytes are missing"));
    }

    fn member(kind: u8, name: &str, content: &[u8], change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        change(&mut header);
        header.set_cksum();
        let mut bytes = [header.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 2 * BLOCK);
        bytes
    }

    fn sealed(members: &[Vec<u8>]) -> TarFile {
        file(&[members.concat(), vec![0; 2 * BLOCK]].concat(), Compression::None)
    }

    fn refused(members: &[Vec<u8>]) -> String {
        names(&sealed(members)).unwrap_err().to_string()
    }

    #[test]
    fn header_data_over_limit_is_refused() {
        let long = vec![b'a'; HEADER_LIMIT as usize];
        let small = pax(&[("SCHILY.xattr.user.a", &[b'a'; 2000])]);
        let file = member(b'0', "a", b"", |_| {});
        let empty = member(b'L', "", b"", |_| {});
        for members in [
            vec![member(b'L', "", &long, |_| {}), file.clone()],
            vec![pax(&[("SCHILY.xattr.user.a", &long)]), file.clone()],
            [vec![small; 500], vec![file.clone()]].concat(),
            [vec![empty; 2100], vec![file.clone()]].concat(),
            // The header claims this size, but there is no content.
            vec![member(b'x', "", b"", |header| header.set_size(1 << 40)), file],
        ] {
            let error = refused(&members);
            assert!(error.contains("more than 1048576 bytes") && error.contains("--no-xattrs"), "{error}");
        }
    }

    #[test]
    fn pax_values_hold_any_byte() {
        let value = b"line\n20 path=elsewhere\nnul\0equals=";
        let archive = sealed(&[
            pax(&[("SCHILY.xattr.user.a", value), ("path", b"new\nline"), ("linkpath", b"x=y"), ("uid", b"70000")]),
            member(b'2', "short", b"", |_| {}),
        ]);
        let mut seen = 0;
        let checked = archive.entries(&(), &mut |entry| {
            seen += 1;
            assert_eq!((&entry.name[..], entry.target.as_deref()), (&b"new\nline"[..], Some(&b"x=y"[..])));
            assert_eq!(entry.records.get("SCHILY.xattr.user.a"), Some(&value[..]));
            assert_eq!((entry.uid(), entry.gid()), (Ok(70_000), Ok(2)));
            Err(entry.error(Path::new("archive"), "which is shown"))
        });
        assert_eq!(seen, 1);
        assert!(checked.unwrap_err().to_string().contains(r#""new\nline", which is shown"#));
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for (record, part) in [
            (&b"7 a=b"[..], "7 bytes (\"7 a=b\"), but only 5 are left"),
            (b"12 size=abc\n", "size is \"abc\" instead of a number"),
            (b"six a=\n", "begins with"),
        ] {
            let error = refused(&[member(b'x', "PaxHeaders/etc", record, |_| {}), member(b'0', "etc", b"", |_| {})]);
            assert!(error.contains(part) && error.contains("etc\""), "{error}");
        }
    }

    #[test]
    fn global_pax_records_apply_to_all_entries_within_limit() {
        let global = |records: &[u8]| member(b'g', "", records, |_| {});
        let (one, two) = (member(b'0', "a", b"", |_| {}), member(b'0', "b", b"", |_| {}));
        let archive = sealed(&[global(b"9 uid=77\n"), one.clone(), pax(&[("uid", b"78")]), two]);
        let mut ids = Vec::new();
        let read = archive.entries(&(), &mut |entry| {
            ids.push((entry.index, entry.uid().unwrap()));
            Ok(())
        });
        read.unwrap();
        assert_eq!(ids, [(0, 77), (1, 78)]);
        let long = format!("60011 comment={}\n", "x".repeat(59_996));
        assert!(refused(&[global(long.as_bytes()), global(long.as_bytes()), one]).contains("more than 65536 bytes"));
    }

    #[test]
    fn pax_size_overrides_header_and_hard_links_have_no_content() {
        let archive = sealed(&[
            pax(&[("size", b"700")]),
            member(b'0', "a", &[1; 700], |header| header.set_size(0)),
            member(b'1', "b", b"", |header| header.set_size(700)),
            member(b'0', "c", b"", |_| {}),
        ]);
        assert_eq!(names(&archive).unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644  ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"0000648\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\x12\x34\x56", Some(0x12_3456)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", Some(1 << 64)),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
        let huge = |header: &mut tar::Header| header.as_old_mut().size = *b"\x80\0\0\x01\0\0\0\0\0\0\0\0";
        assert!(refused(&[member(b'0', "a", b"", huge)]).contains("\"a\", whose size is not a number"));
        let negative = |header: &mut tar::Header| header.as_old_mut().uid = [0xff; 8];
        let archive = sealed(&[member(b'0', "a", b"", negative)]);
        let read = archive.entries(&(), &mut |entry| {
            assert!(entry.uid().unwrap_err().contains("-1 is out of range"));
            Ok(())
        });
        read.unwrap();
    }

    #[test]
    fn gnu_sparse_files_are_read_in_every_format() {
        use crate::import::testing::run;
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        for name in ["sparse", "again"] {
            let source = File::create(path(name)).unwrap();
            // More segments than fit in one header, and a hole at the end.
            for number in 0..40u8 {
                source.write_all_at(&[number + 1; 5000], u64::from(number) * 65536 + 8192).unwrap();
            }
            source.set_len(4 << 20).unwrap();
        }
        let expected = std::fs::read(path("sparse")).unwrap();
        for format in
            ["--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax --sparse-version=0.1", "--format=pax"]
        {
            let mut arguments: Vec<&str> = format.split(' ').collect();
            let (archive, dir) = (path("archive"), path(""));
            arguments.extend(["--sparse", "-cf", &archive, "-C", &dir, "again", "sparse"]);
            run("tar", &arguments);
            assert!(Path::new(&archive).metadata().unwrap().len() < 1 << 20, "{format}: it is not sparse");
            let archive =
                TarFile { path: "archive".into(), file: File::open(&archive).unwrap(), compression: Compression::None };
            let mut index = 0;
            let read = archive.entries(&(), &mut |entry| {
                let name = [&b"again"[..], b"sparse"][index];
                assert_eq!((&entry.name[..], entry.size), (name, 4 << 20), "{format}");
                assert!(entry.stored < 1 << 20, "{format}");
                index += 1;
                if index == 2 {
                    // The first entry is skipped.
                    let mut content = Vec::new();
                    entry.content().read_to_end(&mut content).unwrap();
                    assert!(content == expected, "{format}");
                }
                Ok(())
            });
            read.unwrap();
            assert_eq!(index, 2, "{format}");
        }
    }

    #[test]
    fn damaged_sparse_maps_are_refused() {
        let version = |map: &[u8]| {
            let records: [(&str, &[u8]); 3] =
                [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"4096")];
            let mut content = map.to_vec();
            content.resize(content.len().next_multiple_of(BLOCK) + BLOCK, 1);
            vec![pax(&records), member(b'0', "a", &content, |_| {})]
        };
        assert_eq!(names(&sealed(&version(b"1\n1024\n512\n"))).unwrap(), ["a"]);
        for (map, part) in [
            (&b"2\n1024\n256\n0\n256\n"[..], "not a multiple of 512"),
            (b"1\n4000\n512\n", "exceed the file"),
            (b"1\n0\n1024\n", "1024 bytes, but the archive stores 512"),
            (b"1\n0\nx\n", "is \"x\" instead of a number"),
            (b"99999\n", "instead of a number"),
        ] {
            let error = refused(&version(map));
            assert!(error.contains(part) && error.contains("\"a\""), "{part}: {error}");
        }
        assert!(refused(&version(&vec![b'1'; 2 << 20])).contains("instead of a number"));
        let long = [b"999999\n".to_vec(), b"0\n".repeat(1 << 20)].concat();
        assert!(refused(&version(&long)).contains("more than 1048576 bytes"));
        let star = member(b'S', "a", b"", |header| header.as_mut_bytes()[257..265].copy_from_slice(b"ustar\x0000"));
        assert!(refused(&[star]).contains("other than GNU"));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_archives_never_panic(
            members in proptest::collection::vec(
                (proptest::sample::select(&b"05LKxgSV1"[..]), proptest::collection::vec(proptest::num::u8::ANY, 0..700), 0u64..2000),
                0..6,
            ),
        ) {
            let members: Vec<_> = members.iter().map(|(kind, content, size)| {
                member(*kind, "a", content, |header| if *size < 1000 { header.set_size(*size) })
            }).collect();
            let _ = sealed(&members).entries(&(), &mut |entry| {
                let _ = (entry.mode(), entry.uid(), entry.modified(), entry.device());
                let _ = entry.content().read_to_end(&mut Vec::new());
                Ok(())
            });
        }
    }
}
