//! Tar archives, plain or compressed, read once from beginning to end with limits on what they can make us do.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{ImportError, LARGEST_FILE, Progress};

/// The most that the headers between two files may take: names and attributes are kept in memory while they are read.
const HEADER_LIMIT: u64 = 4 << 20;
/// The most entries that an archive may have.
const ENTRY_LIMIT: u64 = 8 << 20;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// It is not.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// By the file's first bytes.
    pub fn of(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or a frame to be skipped, with which parallel compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// What is in `content`.
    pub fn decode<'a>(self, content: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let content = io::BufReader::with_capacity(128 << 10, content);
        Ok(match self {
            Compression::None => Box::new(content),
            // Parallel compressors write many members.
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(content)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(content)?),
        })
    }
}

/// A tar archive in a file.
#[derive(Debug)]
pub struct TarFile {
    /// Where it is, for errors.
    pub path: PathBuf,
    /// The file.
    pub file: File,
    /// How it is compressed.
    pub compression: Compression,
}

/// A file of an archive, a directory, or whatever else.
pub struct Entry<'a> {
    /// How many entries come before it.
    pub index: u64,
    /// Its name, as it stands in the archive.
    pub name: Vec<u8>,
    /// The first header, for what needs no extension.
    pub header: tar::Header,
    /// The name that it links to.
    pub target: Option<Vec<u8>>,
    /// The pax extensions, in order.
    pub extensions: Vec<(String, Vec<u8>)>,
    /// How many bytes its content has.
    pub size: u64,
    content: &'a mut dyn Read,
}

impl Entry<'_> {
    /// Its content; less than `size` bytes are an error.
    pub fn content(&mut self) -> Exactly<'_> {
        Exactly { left: self.size, content: self.content }
    }

    /// An error about it: "which ...".
    pub fn error(&self, archive: &Path, reason: impl Into<String>) -> ImportError {
        let entry = String::from_utf8_lossy(&self.name).into_owned();
        ImportError::Entry { path: archive.to_path_buf(), entry, reason: reason.into() }
    }
}

/// As many bytes as were announced, or an error.
pub struct Exactly<'a> {
    left: u64,
    content: &'a mut dyn Read,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let count = self.content.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} bytes are missing", self.left)));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl TarFile {
    /// Shows every entry to `visit`, in order. What it does not read of a content is skipped. An archive that ends too
    /// early is an error, whatever was shown before.
    pub fn entries(
        &self,
        progress: &dyn Progress,
        visit: &mut dyn FnMut(&mut Entry) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let bad = |reason: String| ImportError::BadArchive { path: self.path.clone(), reason };
        let damaged = |error: io::Error| bad(error.to_string());
        let mut file = self.file.try_clone().map_err(ImportError::read(&self.path))?;
        io::Seek::rewind(&mut file).map_err(ImportError::read(&self.path))?;
        let counted = Counted { inner: file, progress };
        let meter = Rc::new(Meter::default());
        let metered = Metered { inner: self.compression.decode(counted).map_err(damaged)?, meter: meter.clone() };
        let mut archive = tar::Archive::new(metered);
        let mut entries = archive.entries().map_err(damaged)?;
        for index in 0.. {
            meter.left.set(HEADER_LIMIT);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(damaged)?;
            if index == ENTRY_LIMIT {
                return Err(bad(format!("it has more than {ENTRY_LIMIT} entries")));
            }
            let extensions = extensions(&mut entry).map_err(damaged)?;
            meter.left.set(u64::MAX);
            let mut shown = Entry {
                index,
                name: entry.path_bytes().into_owned(),
                header: entry.header().clone(),
                target: entry.link_name_bytes().map(|name| name.into_owned()),
                extensions,
                size: entry.size(),
                content: &mut entry,
            };
            if shown.size > LARGEST_FILE {
                return Err(shown.error(&self.path, format!("which has more than {LARGEST_FILE} bytes")));
            }
            if shown.extensions.iter().any(|(key, _)| key.starts_with("GNU.sparse.")) {
                let reason = "which is sparse in a way that is not read here: make the archive without --sparse";
                return Err(shown.error(&self.path, reason));
            }
            visit(&mut shown)?;
            // What is left of it: the next header's limit is not for contents.
            io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        }
        if meter.ended.get() {
            return Err(bad("it has no end mark".into()));
        }
        Ok(())
    }
}

fn extensions(entry: &mut tar::Entry<impl Read>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        // A key that is no text is one that nobody knows.
        if let Ok(key) = extension.key() {
            all.push((key.to_string(), extension.value_bytes().to_vec()));
        }
    }
    Ok(all)
}

/// Tells of what is read of the file.
struct Counted<'a> {
    inner: File,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

/// What may still be read, and whether the end was met.
#[derive(Default)]
struct Meter {
    left: Cell<u64>,
    ended: Cell<bool>,
}

struct Metered<'a> {
    inner: Box<dyn Read + 'a>,
    meter: Rc<Meter>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.meter.ended.set(true);
        }
        let Some(left) = self.meter.left.get().checked_sub(count as u64) else {
            return Err(io::Error::other(format!(
                "the names and attributes of one file take over {HEADER_LIMIT} bytes"
            )));
        };
        self.meter.left.set(left);
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
    fn plain_and_compressed_archives_show_the_same() {
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
    fn an_archive_that_is_cut_off_anywhere_is_noticed() {
        let bytes = archive(&[("a", &[1; 700]), ("b", &[2; 10])]);
        let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        for length in [1, 100, 512, 600, 1024, 1536, 1600, 2048, 2500] {
            let error = names(&file(&bytes[..length], Compression::None)).unwrap_err().to_string();
            assert!(error.contains("cut off"), "{length}: {error}");
        }
        assert!(names(&file(&zstd[..zstd.len() - 1], Compression::Zstd)).is_err());
    }

    #[test]
    fn a_content_that_is_cut_off_is_noticed_by_its_reader() {
        let bytes = archive(&[("a", &[1; 700])]);
        let error = file(&bytes[..600], Compression::None).entries(&(), &mut |entry| {
            let read = entry.content().read_to_end(&mut Vec::new());
            read.map(|_| ()).map_err(ImportError::read(Path::new("archive")))
        });
        assert!(error.unwrap_err().to_string().contains("612 bytes are missing"));
    }

    #[test]
    fn names_without_end_are_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(HEADER_LIMIT * 2);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(bytes.len() + HEADER_LIMIT as usize * 2, b'a');
        bytes.extend(archive(&[("a", b"")]));
        assert!(names(&file(&bytes, Compression::None)).unwrap_err().to_string().contains("over 4194304 bytes"));
    }
}
