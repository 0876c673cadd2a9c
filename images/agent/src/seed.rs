//! The host's data for a new instance: its identity, its public keys and its user data.
//!
//! The VMM offers it on the host's vsock port [`SEED_PORT`]. A guest that connects reads the seed, then the end of the
//! stream. The seed is a version and one message in postcard's encoding.

use serde::{Deserialize, Serialize};

/// Vsock port of the host that serves the seed.
pub const SEED_PORT: u32 = 1025;

/// Maximum size of a seed in bytes. User data is at most 16 KiB, a key is a few hundred bytes.
pub const MAX_SEED: usize = 64 * 1024;

const VERSION: u32 = 2;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// ID of the instance. The agent runs the user data once for each ID.
    pub instance_id: String,
    /// `None` if the kernel's command line sets the host name.
    pub hostname: Option<String>,
    /// User whose `authorized_keys` get the public keys.
    pub default_user: String,
    /// Public keys, as lines of `authorized_keys`.
    pub public_keys: Vec<String>,
    /// User data, decoded and decompressed.
    pub user_data: Option<Vec<u8>>,
}

impl Seed {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(&(VERSION, self)).expect("a seed can be serialized")
    }

    /// Returns `None` if the seed is invalid or has a different version.
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
    fn seed_round_trips_and_invalid_bytes_are_refused() {
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
