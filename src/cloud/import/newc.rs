//! The archives of initial RAM disks: cpio's "new ASCII" format (`newc`), as
//! Documentation/driver-api/early-userspace/buffer-format.rst describes it. Only regular files are looked for.

/// A header: a magic number and thirteen fields of eight hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
/// `newc`, without and with checksums.
const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
/// The fields that are used, by their position.
const MODE: usize = 1;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;
/// The name behind which there is nothing.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The type bits of a mode, and a regular file's.
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// The content of the regular file `name` (without a leading slash) in an uncompressed archive. The error is a part of a
/// sentence.
pub fn find<'a>(archive: &'a [u8], name: &str) -> Result<&'a [u8], String> {
    let mut rest = Rest { bytes: archive, at: 0 };
    loop {
        let header = rest.take(HEADER)?;
        if !MAGICS.contains(&&header[..6]) {
            return Err(format!("no newc header at byte {}", rest.at - HEADER));
        }
        let (mode, size, name_size) = (field(header, MODE)?, field(header, FILE_SIZE)?, field(header, NAME_SIZE)?);
        let entry = rest.take(name_size as usize)?.strip_suffix(b"\0").ok_or("a name without an end")?;
        rest.align()?;
        let content = rest.take(size as usize)?;
        rest.align()?;
        if entry == TRAILER {
            return Err(format!("it has no file {name}"));
        }
        let entry = entry.strip_prefix(b"./").unwrap_or(entry);
        let entry = entry.strip_prefix(b"/").unwrap_or(entry);
        if entry == name.as_bytes() && mode & TYPE == REGULAR {
            return Ok(content);
        }
    }
}

fn field(header: &[u8], index: usize) -> Result<u32, String> {
    let digits = &header[6 + index * 8..][..8];
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    text.and_then(|text| u32::from_str_radix(text, 16).ok()).ok_or_else(|| "a header with no numbers in it".to_string())
}

struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("it ends within an entry, at byte {}", self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    /// Names and contents end at multiples of four bytes.
    fn align(&mut self) -> Result<(), String> {
        self.take(self.at.next_multiple_of(4) - self.at).map(|_| ())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An archive of regular files.
    pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, content) in files.iter().chain(&[("TRAILER!!!", b"".as_slice())]) {
            let mut fields = [0; 13];
            fields[MODE] = REGULAR | 0o755;
            fields[FILE_SIZE] = content.len();
            fields[NAME_SIZE] = name.len() + 1;
            archive.extend(MAGICS[0]);
            fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
            archive.extend(name.bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(*content);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    const REGULAR: usize = super::REGULAR as usize;

    #[test]
    fn a_file_is_found_by_any_spelling_of_its_name() {
        for name in ["init", "./init", "/init"] {
            assert_eq!(find(&archive(&[("other", b"x"), (name, b"agent")]), "init").unwrap(), b"agent");
        }
        assert_eq!(find(&archive(&[("other", b"x")]), "init").unwrap_err(), "it has no file init");
    }

    #[test]
    fn what_is_cut_off_or_no_archive_is_an_error() {
        let whole = archive(&[("init", b"agent")]);
        for length in 0..HEADER + 8 + 5 {
            assert!(find(&whole[..length], "init").is_err(), "{length}");
        }
        assert!(find(&[b'x'; 200], "init").unwrap_err().contains("no newc header at byte 0"));
    }

    proptest! {
        #[test]
        fn what_was_put_in_is_found(files in proptest::collection::btree_map("[a-z]{1,20}", any::<Vec<u8>>(), 1..6)) {
            let list: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
            let bytes = archive(&list);
            for (name, content) in &list {
                prop_assert_eq!(find(&bytes, name).unwrap(), *content);
            }
        }

        #[test]
        fn arbitrary_changes_never_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
            let mut bytes = archive(&[("a", b"123"), ("init", b"agent")]);
            let index = at % bytes.len();
            bytes[index] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = find(&bytes, "init");
        }
    }
}
