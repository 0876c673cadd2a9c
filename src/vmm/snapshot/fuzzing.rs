//! Entry points for fuzzing a saved machine's state: what is read must not end the process, even where the digest is right.

use sha2::{Digest, Sha256};

use super::{MAGIC, VERSION, parse};
use crate::vmm::virtio;

/// A state's file; or, where the first byte is odd, what is behind a header that is right.
pub(crate) fn state(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let content = if first & 1 == 0 {
        rest.to_vec()
    } else {
        let length = (rest.len() as u64).to_le_bytes();
        [&MAGIC[..], &VERSION.to_le_bytes(), &length, &Sha256::digest(rest), rest].concat()
    };
    if let Ok(state) = parse(&content) {
        state.virtio.iter().for_each(virtio::fuzzing::restore);
    }
}

/// The state of one device of a saved machine's.
pub(crate) fn device(data: &[u8]) {
    if let Ok(state) = postcard::from_bytes(data) {
        virtio::fuzzing::restore(&state);
    }
}
