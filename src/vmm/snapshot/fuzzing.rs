//! Fuzzing entry points for the state file of a snapshot: no input may crash the process, even with a valid digest.

use super::{VERSION, parse, with_header};
use crate::virtio;

/// Parses a state file. If the first byte is odd, the remaining bytes are parsed after a valid header.
pub fn state(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let content = if first & 1 == 0 { rest.to_vec() } else { with_header(VERSION, rest) };
    if let Ok(state) = parse(&content) {
        state.virtio.iter().for_each(virtio::fuzzing::restore);
    }
}

pub fn device(data: &[u8]) {
    if let Ok(state) = postcard::from_bytes(data) {
        virtio::fuzzing::restore(&state);
    }
}
