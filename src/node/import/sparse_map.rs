//! Sparse files in tar archives: GNU tar's own format (entry type `S`), and PAX formats 0.0, 0.1 and 1.0.
//!
//! The archive stores only the data segments, and a map of their offsets and lengths (GNU tar manual, "Storing Sparse
//! Files").

use super::number::number;
use super::pax::{Records, decimal, not_a_number};

const BLOCK: usize = 512;

/// Data segments of a file as pairs of offset and length, in order, and the file's size. All in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    pub segments: Vec<(u64, u64)>,
    pub size: u64,
}

impl SparseMap {
    pub fn whole(size: u64) -> SparseMap {
        SparseMap { segments: vec![(0, size)], size }
    }

    /// Checks a map against the number of bytes that the archive stores for the entry.
    fn checked(segments: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<SparseMap, String> {
        let damaged = |what: &str| Err(format!("whose sparse map is damaged: {what}"));
        let (mut end, mut data) = (0u64, 0u64);
        for (offset, length) in &segments {
            if !data.is_multiple_of(BLOCK as u64) && *length > 0 {
                return damaged("the size of a segment before the last one is not a multiple of 512 bytes");
            }
            let next = offset.checked_add(*length);
            match next {
                Some(next) if *offset >= end && next <= size => end = next,
                _ => return damaged("its segments overlap or exceed the file"),
            }
            data += length;
        }
        if data != stored {
            return damaged(&format!("its segments have {data} bytes, but the archive stores {stored}"));
        }
        Ok(SparseMap { segments, size })
    }

    /// Reads a map in PAX format 0.0 or 0.1 from the PAX records. Returns `None` if they contain no map.
    pub fn of_records(records: &Records, stored: u64) -> Result<Option<SparseMap>, String> {
        let Some(size) = records.number("GNU.sparse.size")? else { return Ok(None) };
        let mut numbers = Vec::new();
        if let Some(map) = records.get("GNU.sparse.map") {
            for text in map.split(|byte| *byte == b',') {
                numbers.push(decimal(text).ok_or_else(|| not_a_number("GNU.sparse.map", text))?);
            }
        } else {
            for (index, (key, value)) in records
                .iter()
                .filter(|(key, _)| [&b"GNU.sparse.offset"[..], b"GNU.sparse.numbytes"].contains(key))
                .enumerate()
            {
                let expected = ["GNU.sparse.offset", "GNU.sparse.numbytes"][index % 2];
                if key != expected.as_bytes() {
                    return Err("whose sparse map is damaged: offsets and lengths do not alternate".into());
                }
                numbers.push(decimal(value).ok_or_else(|| not_a_number(expected, value))?);
            }
        }
        Self::checked(pairs(&numbers)?, size, stored).map(Some)
    }

    /// Reads a map in PAX format 1.0, which precedes the data. Returns the map and the number of bytes read.
    pub fn of_content<E: From<String>>(
        size: u64,
        stored: u64,
        block: &mut dyn FnMut() -> Result<[u8; BLOCK], E>,
    ) -> Result<(SparseMap, u64), E> {
        let mut text = Vec::new();
        let mut blocks = 0u64;
        let mut numbers: Vec<u64> = Vec::new();
        let mut at = 0;
        // The map is the number of segments, followed by two numbers for each segment.
        while numbers
            .first()
            .is_none_or(|count| (numbers.len() as u64 - 1) / 2 < *count || numbers.len().is_multiple_of(2))
        {
            match text[at..].iter().position(|byte| *byte == b'\n') {
                Some(length) => {
                    let line = &text[at..at + length];
                    numbers.push(decimal(line).ok_or_else(|| not_a_number("GNU.sparse map", line))?);
                    at += length + 1;
                }
                // A 64-bit number has up to 20 digits.
                None if text.len() - at > 20 => {
                    return Err(E::from(not_a_number("GNU.sparse map", &text[at..])));
                }
                None => {
                    blocks += 1;
                    if stored < blocks * BLOCK as u64 {
                        return Err(E::from("whose sparse map is damaged: it is longer than the content".to_string()));
                    }
                    text.drain(..at);
                    at = 0;
                    text.extend(block()?);
                }
            }
        }
        let read = blocks * BLOCK as u64;
        Ok((Self::checked(pairs(&numbers[1..])?, size, stored - read)?, read))
    }

    /// Reads the map in a GNU header, which may continue in extension blocks.
    pub fn of_gnu<E: From<String>>(
        header: &tar::Header,
        stored: u64,
        block: &mut dyn FnMut() -> Result<[u8; BLOCK], E>,
    ) -> Result<SparseMap, E> {
        let gnu = header.as_gnu().ok_or_else(|| "which has a sparse format other than GNU tar's".to_string())?;
        let size = field(&gnu.realsize)?;
        let mut segments = Vec::new();
        take_segments(&header.as_bytes()[386..482], &mut segments)?;
        let mut more = gnu.isextended[0] != 0;
        while more {
            let extension = block()?;
            take_segments(&extension[..504], &mut segments)?;
            more = extension[504] != 0;
        }
        Ok(Self::checked(segments, size, stored)?)
    }
}

fn field(bytes: &[u8]) -> Result<u64, String> {
    number(bytes)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or_else(|| "whose sparse map is damaged: it contains a value that is not a number".to_string())
}

/// Parses segments, each an offset and a length of 12 bytes, up to the first empty field.
fn take_segments(fields: &[u8], segments: &mut Vec<(u64, u64)>) -> Result<(), String> {
    for pair in fields.as_chunks::<24>().0 {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        segments.push((field(&pair[..12])?, field(&pair[12..])?));
    }
    Ok(())
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, String> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
    } else {
        Err("whose sparse map is damaged: it has an offset without a length".into())
    }
}
