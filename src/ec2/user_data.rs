//! User data: input for an instance's first boot.
//!
//! Sources: EC2 User Guide, "Run commands when you launch an EC2 instance with user data input" (at most 16 KB in raw
//! form, before base64 encoding); cloud-init's documentation, "User data formats".

use std::fmt;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD as BASE64_WITHOUT_PADDING};

use super::error::{Ec2Error, ErrorCode};

/// Maximum raw size in bytes. For compressed user data, this is the compressed size.
pub const MAX_BYTES: usize = 16_384;

/// Maximum uncompressed size in bytes for the agent of an image without cloud-init.
pub const MAX_UNPACKED: usize = 48 << 10;

/// Maximum number of nested compressions and encodings.
const MAX_LAYERS: usize = 4;

/// UTF-8's byte-order mark, which some editors write at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The magic number of gzip (RFC 1952, section 2.3.1).
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// Maximum length of base64 input: enough for 16 KiB with each digit on its own line.
const MAX_BASE64: usize = 4 * MAX_BYTES;

/// The format of user data for cloud-init, detected by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserDataKind {
    /// Starts with `#!` and runs late in the first boot.
    Script,
    /// YAML whose first line is `#cloud-config`.
    CloudConfig,
    /// Compressed data. cloud-init decompresses it and detects the format of the result.
    Gzip,
    Mime,
    /// Another cloud-init format, detected by its first line, such as `#include` or `#cloud-boothook`.
    CloudInit,
    Other,
}

impl UserDataKind {
    pub fn of(bytes: &[u8]) -> UserDataKind {
        let bytes = without_mark(bytes);
        let line = first_line(bytes).trim_ascii_end();
        if bytes.starts_with(GZIP_MAGIC) {
            UserDataKind::Gzip
        } else if bytes.starts_with(b"#!") {
            UserDataKind::Script
        } else if line == b"#cloud-config" {
            UserDataKind::CloudConfig
        } else if CLOUD_INIT_LINES.contains(&line) {
            UserDataKind::CloudInit
        } else if [b"content-type:".as_slice(), b"mime-version:"].into_iter().any(|header| begins_with(bytes, header)) {
            UserDataKind::Mime
        } else {
            UserDataKind::Other
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            UserDataKind::Script => "script",
            UserDataKind::CloudConfig => "cloud-config",
            UserDataKind::Gzip => "gzip",
            UserDataKind::Mime => "MIME multipart",
            UserDataKind::CloudInit => "cloud-init part",
            UserDataKind::Other => "other",
        }
    }
}

impl fmt::Display for UserDataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.title())
    }
}

/// The first lines of cloud-init's other formats (cloudinit/handlers/__init__.py, `INCLUSION_TYPES_MAP`).
const CLOUD_INIT_LINES: [&[u8]; 8] = [
    b"#include",
    b"#include-once",
    b"#cloud-boothook",
    b"#cloud-config-archive",
    b"#cloud-config-jsonp",
    b"#part-handler",
    b"#upstart-job",
    b"## template: jinja",
];

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

fn first_line(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// Returns true if `bytes` starts with `prefix`, ignoring ASCII case.
fn begins_with(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn too_large(bytes: usize, kind: UserDataKind) -> Ec2Error {
    let title = if kind == UserDataKind::Other { "text" } else { kind.title() };
    let what = format!("User data is limited to {MAX_BYTES} bytes; this {title} has {bytes}.");
    let hint = if kind == UserDataKind::Gzip {
        "The data is already compressed. Let it load the rest from elsewhere, such as a volume."
    } else {
        "Compress the data with gzip, which cloud-init decompresses, or let it load the rest from elsewhere."
    };
    Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into()))
}

fn unpacks_too_large() -> Ec2Error {
    let what = format!("User data is limited to {MAX_UNPACKED} bytes after decompression.");
    let hint = "Let the data load the rest from elsewhere, such as a volume, or use an image with cloud-init.";
    Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into()))
}

fn not_base64() -> Ec2Error {
    let hint = "Encode the data with `base64`, or specify it unencoded.";
    let what = "Invalid BASE64 encoding of user data.";
    Ec2Error::refused(ErrorCode::InvalidUserDataMalformed, what, Some(hint.into()))
}

/// An instance's user data in raw form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserData {
    bytes: Vec<u8>,
}

impl UserData {
    /// Reads the input of `--user-data` or a file: the user data itself, or its base64.
    ///
    /// Decodes input that, apart from white space, is entirely base64 of a cloud-init format, gzip or text. Text is
    /// decoded only from padded or long base64, so that a word such as `hello123` is kept. Input that is encoded for
    /// EC2's API therefore works here too. Fails if the user data is too large.
    pub fn read(given: &[u8]) -> Result<UserData, Ec2Error> {
        let given = without_mark(given);
        let decoded = (given.len() <= MAX_BASE64).then(|| decode_known(given)).flatten();
        Self::raw(decoded.unwrap_or_else(|| given.to_vec()))
    }

    /// Removes compression, base64 and byte-order mark, for the agent of an image without cloud-init.
    ///
    /// If a script's first line ends with a carriage return, removes those at all line ends: otherwise, the first one
    /// would become part of the interpreter's name. Data that only starts like gzip is kept. Fails if the uncompressed
    /// data is too large.
    pub fn unwrapped(&self) -> Result<Vec<u8>, Ec2Error> {
        let mut bytes = without_mark(&self.bytes).to_vec();
        for _ in 0..MAX_LAYERS {
            let inner = match UserDataKind::of(&bytes) {
                UserDataKind::Gzip => gunzip(&bytes)?,
                UserDataKind::Other => decode_known(&bytes),
                _ => None,
            };
            let Some(inner) = inner else { break };
            bytes = without_mark(&inner).to_vec();
        }
        if UserDataKind::of(&bytes) == UserDataKind::Script && first_line(&bytes).ends_with(b"\r") {
            bytes = without_carriage_returns(&bytes);
        }
        Ok(bytes)
    }

    /// Returns true for empty user data, which is equivalent to none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes user data in raw form. Fails if it has more than [`MAX_BYTES`] bytes.
    pub fn raw(bytes: Vec<u8>) -> Result<UserData, Ec2Error> {
        if bytes.len() > MAX_BYTES {
            return Err(too_large(bytes.len(), UserDataKind::of(&bytes)));
        }
        Ok(UserData { bytes })
    }

    /// Decodes base64, the form in which EC2's API accepts and returns user data.
    pub fn from_base64(text: &str) -> Result<UserData, Ec2Error> {
        Self::raw(decode(text.as_bytes()).ok_or_else(not_base64)?)
    }

    /// Returns base64, as `DescribeInstanceAttribute` does.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn kind(&self) -> UserDataKind {
        UserDataKind::of(&self.bytes)
    }
}

/// Decodes base64 whose content is in a format of cloud-init or gzip. Text is decoded only from padded or long base64.
fn decode_known(given: &[u8]) -> Option<Vec<u8>> {
    let digits = given.trim_ascii();
    let is_deliberate = digits.ends_with(b"=") || digits.len() >= LONG_BASE64;
    decode(given)
        .filter(|decoded| UserDataKind::of(decoded) != UserDataKind::Other || is_deliberate && is_text(decoded))
}

/// Minimum number of digits of unpadded base64 of text. A word or password of this length rarely decodes to text.
const LONG_BASE64: usize = 32;

fn is_text(bytes: &[u8]) -> bool {
    let is_printed = |character: char| !character.is_control() || matches!(character, '\n' | '\r' | '\t');
    !bytes.is_empty() && std::str::from_utf8(bytes).is_ok_and(|text| text.chars().all(is_printed))
}

/// Returns none if the data is not gzip.
fn gunzip(bytes: &[u8]) -> Result<Option<Vec<u8>>, Ec2Error> {
    let mut unpacked = Vec::new();
    let limit = MAX_UNPACKED as u64 + 1;
    match flate2::read::MultiGzDecoder::new(bytes).take(limit).read_to_end(&mut unpacked) {
        Ok(count) if count > MAX_UNPACKED => Err(unpacks_too_large()),
        Ok(_) => Ok(Some(unpacked)),
        Err(_) => Ok(None),
    }
}

fn without_carriage_returns(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.collect::<Vec<_>>().join(&b'\n')
}

/// Decodes base64 with or without padding, across any number of lines.
fn decode(given: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = given.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(&digits).or_else(|_| BASE64_WITHOUT_PADDING.decode(&digits)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(given: &[u8]) -> UserData {
        UserData::read(given).expect("allowed")
    }

    #[test]
    fn kind_is_detected_by_first_bytes() {
        for (given, kind) in [
            (b"#!/bin/sh\n".as_slice(), UserDataKind::Script),
            (b"#cloud-config\npackages: []\n", UserDataKind::CloudConfig),
            (b"#cloud-config\r\n", UserDataKind::CloudConfig),
            (b"\x1f\x8b\x08\x00", UserDataKind::Gzip),
            (b"Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n\n", UserDataKind::Mime),
            (b"MIME-Version: 1.0\n", UserDataKind::Mime),
            (b"#cloud-configuration\n", UserDataKind::Other),
            (b"#include\n", UserDataKind::CloudInit),
            (b"#cloud-boothook\r\n", UserDataKind::CloudInit),
            (b"\xef\xbb\xbf#!/bin/sh\n", UserDataKind::Script),
            (b"", UserDataKind::Other),
        ] {
            assert_eq!(read(given).kind(), kind, "{given:?}");
        }
    }

    #[test]
    fn base64_of_known_format_is_decoded() {
        for raw in
            [b"#!/bin/sh\necho hello\n".as_slice(), b"#cloud-config\n", b"\x1f\x8b\x08\x00", b"MIME-Version: 1.0\n"]
        {
            let encoded = BASE64.encode(raw);
            assert_eq!(read(encoded.as_bytes()).bytes(), raw);
            let on_lines = encoded.as_bytes().chunks(5).collect::<Vec<_>>().join(b"\n".as_slice());
            assert_eq!(read(&on_lines).bytes(), raw);
            assert_eq!(read(encoded.trim_end_matches('=').as_bytes()).bytes(), raw);
        }
    }

    #[test]
    fn text_that_resembles_base64_is_kept() {
        for given in [b"hello123".as_slice(), b"aGVsbG8x", b"data", b"////", b"AAECAwQFBgc="] {
            assert_eq!(read(given).bytes(), given);
        }
    }

    #[test]
    fn base64_of_every_kind_is_decoded() {
        for raw in [b"hello".as_slice(), b"{\"a\": 12}\n", b"#include\nhttp://a/\n", b"key=value, and more of that\n"] {
            assert_eq!(read(BASE64.encode(raw).as_bytes()).bytes(), raw);
        }
        let marked = [BYTE_ORDER_MARK, BASE64.encode(b"hello").as_bytes()].concat();
        assert_eq!(read(&marked).bytes(), b"hello");
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("into memory");
        encoder.finish().expect("into memory")
    }

    fn unwrapped(bytes: &[u8]) -> Vec<u8> {
        UserData::raw(bytes.to_vec()).expect("short").unwrapped().expect("short")
    }

    #[test]
    fn unwrapped_removes_gzip_and_base64_of_every_kind() {
        for raw in
            [b"#!/bin/sh\necho\n".as_slice(), b"#cloud-config\n", b"MIME-Version: 1.0\n", b"plain text", b"#include\n"]
        {
            let encoded = BASE64.encode(raw);
            assert_eq!(unwrapped(raw), raw);
            assert_eq!(unwrapped(&gzip(raw)), raw);
            assert_eq!(unwrapped(&gzip(&gzip(raw))), raw);
            assert_eq!(unwrapped(BASE64.encode(gzip(raw)).as_bytes()), raw);
            assert_eq!(unwrapped(&gzip(BASE64.encode(gzip(raw)).as_bytes())), raw);
            if encoded.ends_with('=') || UserDataKind::of(raw) != UserDataKind::Other {
                assert_eq!(unwrapped(&gzip(encoded.as_bytes())), raw);
            }
        }
        assert_eq!(unwrapped(&[0x1f, 0x8b, 0]), [0x1f, 0x8b, 0], "it only looks like gzip");
    }

    #[test]
    fn script_carriage_returns_and_byte_order_mark_are_removed() {
        let script = b"#!/bin/sh\necho 'a\rb'\n";
        for given in [b"#!/bin/sh\r\necho 'a\rb'\r\n".as_slice(), b"\xef\xbb\xbf#!/bin/sh\r\necho 'a\rb'\r\n"] {
            assert_eq!(unwrapped(given), script);
            assert_eq!(unwrapped(&gzip(given)), script);
        }
        // A script whose first line has no carriage return is unchanged, and so is data that is not a script.
        for given in [b"#!/bin/sh\nprintf 'a\r\n'\n".as_slice(), b"a,b\r\nc,d\r\n"] {
            assert_eq!(unwrapped(given), given);
        }
        assert_eq!(read(b"\xef\xbb\xbf#cloud-config\n").bytes(), b"#cloud-config\n");
        assert!(read(b"").is_empty() && read(b"\xef\xbb\xbf").is_empty());
    }

    #[test]
    fn oversized_uncompressed_data_is_refused() {
        let data = UserData::raw(gzip(&vec![b'x'; MAX_UNPACKED + 1])).expect("short");
        assert_eq!(data.unwrapped(), Err(unpacks_too_large()));
        assert_eq!(unwrapped(&gzip(&vec![b'x'; MAX_UNPACKED])).len(), MAX_UNPACKED);
    }

    #[test]
    fn raw_data_over_16_kib_is_refused() {
        let mut script = b"#!".to_vec();
        script.resize(MAX_BYTES, b'x');
        assert_eq!(read(&script).bytes().len(), MAX_BYTES);
        assert_eq!(read(BASE64.encode(&script).as_bytes()).bytes(), script);
        script.push(b'x');
        let error = UserData::read(&script).expect_err("one too many");
        let expected = "InvalidParameterValue: User data is limited to 16384 bytes; this script has 16385.";
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().is_some_and(|hint| hint.contains("gzip")));
        let encoded = BASE64.encode(&script);
        let error = UserData::read(encoded.as_bytes()).expect_err("one too many, encoded");
        assert_eq!(error, too_large(MAX_BYTES + 1, UserDataKind::Script));
    }

    #[test]
    fn from_base64_accepts_any_content() {
        assert_eq!(UserData::from_base64("aGVsbG8=").expect("base64").bytes(), b"hello");
        let error = UserData::from_base64("hello!").expect_err("not base64");
        assert_eq!(error.code(), ErrorCode::InvalidUserDataMalformed);
    }

    proptest! {
        #[test]
        fn read_never_panics_and_base64_round_trips(given: Vec<u8>) {
            let data = UserData::read(&given).expect("it is short");
            data.unwrapped().expect("it is short");
            prop_assert_eq!(UserData::from_base64(&data.to_base64()), Ok(data));
        }
    }
}
