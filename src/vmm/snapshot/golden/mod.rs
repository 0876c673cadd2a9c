//! State files of past builds, which the current code must still read.
//!
//! No earlier format version can be read, so the only file, `version-4`, has the current one: any change of the format
//! without a new version fails here. With a new version, either keep the file and test that it is still read, or
//! replace it: set `WISP_WRITE_GOLDEN` to write the file of [`sample::state`].

mod sample;

use std::fs;

use super::{HEADER, MEMORY, MachineState, STATE, SnapshotError, VERSION, parse, with_header};

const GOLDEN: &[u8] = include_bytes!("version-4");
/// The version of the golden file.
const GOLDEN_VERSION: u32 = 4;

fn altered(at: usize, bits: u8) -> Vec<u8> {
    let mut content = GOLDEN.to_vec();
    content[at] ^= bits;
    content
}

fn with_version(version: u32) -> Vec<u8> {
    let mut content = GOLDEN.to_vec();
    content[8..12].copy_from_slice(&version.to_le_bytes());
    content
}

fn encoded(state: &MachineState) -> Vec<u8> {
    with_header(VERSION, &postcard::to_allocvec(state).unwrap())
}

#[test]
fn golden_file_is_read_with_all_its_values() {
    let state = parse(GOLDEN).unwrap();
    assert_eq!(format!("{state:#?}"), format!("{:#?}", sample::state()));
    // The Debug output lacks the contents of unions.
    assert!(encoded(&state) == encoded(&sample::state()));
}

#[test]
fn state_is_written_as_in_golden_file() {
    let written = encoded(&sample::state());
    if std::env::var_os("WISP_WRITE_GOLDEN").is_some() {
        let name = format!("{}/snapshot/golden/version-{VERSION}", env!("CARGO_MANIFEST_DIR"));
        fs::write(name, &written).unwrap();
    }
    assert_eq!(VERSION, GOLDEN_VERSION, "a new version needs a golden file of its own");
    assert!(written == GOLDEN, "the format has changed: increment VERSION");
}

#[test]
fn other_format_version_is_refused() {
    for version in [GOLDEN_VERSION + 1, GOLDEN_VERSION - 1, 0, u32::MAX] {
        let expected = format!(
            "a different version of wisp saved it (its format version is {version}, this wisp reads {VERSION})"
        );
        assert_eq!(parse(&with_version(version)).unwrap_err(), expected);
    }
}

#[test]
fn golden_file_of_any_other_length_is_refused() {
    for length in 0..GOLDEN.len() {
        let expected = if length < HEADER {
            format!("it is truncated to {length} bytes")
        } else {
            format!("its payload is {} bytes long instead of {}", length - HEADER, GOLDEN.len() - HEADER)
        };
        assert_eq!(parse(&GOLDEN[..length]).unwrap_err(), expected);
    }
    assert!(parse(&[GOLDEN, &[0]].concat()).is_err());
}

#[test]
fn golden_file_with_any_byte_altered_is_refused() {
    for at in 0..GOLDEN.len() {
        for bits in [1, 0x80] {
            let reason = parse(&altered(at, bits)).unwrap_err();
            let expected = match at {
                0..8 => "magic number",
                8..12 => "a different version",
                12..20 => "bytes long instead of",
                _ => "SHA-256 does not match",
            };
            assert!(reason.contains(expected), "byte {at}: {reason}");
        }
    }
}

/// A file that was altered on purpose has a valid digest. It is read as another state, or refused.
#[test]
fn altered_payload_with_valid_digest_is_another_state_or_refused() {
    for at in HEADER..GOLDEN.len() {
        let content = with_header(VERSION, &altered(at, 0xff)[HEADER..]);
        if let Ok(state) = parse(&content) {
            assert!(encoded(&state) != GOLDEN, "byte {at} is ignored");
        }
    }
    for length in HEADER..GOLDEN.len() {
        assert!(parse(&with_header(VERSION, &GOLDEN[HEADER..length])).is_err(), "{length} bytes");
    }
}

#[test]
fn golden_file_of_other_host_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(STATE), GOLDEN).unwrap();
    fs::write(dir.path().join(MEMORY), b"").unwrap();
    match MachineState::read(dir.path()) {
        Err(SnapshotError::Unusable { reason, .. }) => {
            assert!(reason.starts_with("it was taken on a different CPU model, \"Golden CPU\""), "{reason}");
        }
        other => panic!("expected another CPU model: {other:?}"),
    }
}
