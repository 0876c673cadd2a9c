//! The host's data for a new instance: its identity, its public keys and its user data.
//!
//! The VMM offers it on vsock port [`SEED_PORT`] of the host. A guest that connects reads the seed, then the end of
//! the stream.
//! The seed is a version and one message in postcard's encoding.

use serde::{Deserialize, Serialize};

/// The host's vsock port that serves the seed.
pub const SEED_PORT: u32 = 1025;

/// The length of the longest seed, in bytes. User data has 16 KiB at most, keys a few hundred bytes each.
pub const MAX_SEED: usize = 64 * 1024;

/// The version of [`Seed`]'s format.
const VERSION: u32 = 2;

/// The data for a new instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The instance's identifier. Per-instance work is repeated when it changes.
    pub instance_id: String,
    /// The hostname, or `None` if the kernel's command line sets it.
    pub hostname: Option<String>,
    /// The user whose `authorized_keys` get the public keys.
    pub default_user: String,
    /// Public keys, as lines of `authorized_keys`.
    pub public_keys: Vec<String>,
    /// User data, decoded and decompressed.
    pub user_data: Option<Vec<u8>>,
}

impl Seed {
    /// Encodes the seed.
    ///
    /// # Panics
    /// Never: the seed is plain data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(&(VERSION, self)).expect("a seed is plain data")
    }

    /// Decodes a seed. Returns `None` if it is invalid or of another version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = postcard::take_from_bytes::<u32>(bytes).ok()?;
        if version == VERSION { postcard::from_bytes(rest).ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_read_back_and_nothing_else_is_one() {
        let seed = Seed {
            instance_id: "i-0123456789abcdef0".into(),
            hostname: Some("i-01234567".into()),
            default_user: "root".into(),
            public_keys: vec!["ssh-ed25519 AAAA".into()],
            user_data: Some(b"#!/bin/sh\n".to_vec()),
        };
        let bytes = seed.encode();
        assert_eq!(Seed::decode(&bytes), Some(seed));
        assert_eq!(Seed::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Seed::decode(&[99]), None);
        assert_eq!(Seed::decode(&[]), None);
    }
}
