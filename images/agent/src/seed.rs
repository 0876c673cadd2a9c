//! What the host tells a new instance: who it is, whose keys open it, what it is to run first.
//!
//! The monitor offers it on vsock port [`SEED_PORT`] of the host: a guest that connects reads the seed and then the end.
//! It is one message in postcard's encoding, behind a version.

use serde::{Deserialize, Serialize};

/// The host's vsock port at which a guest reads its seed.
pub const SEED_PORT: u32 = 1025;

/// The longest seed, in bytes: user data has 16 KiB at most, keys a few hundred bytes each.
pub const MAX_SEED: usize = 64 * 1024;

/// The version of [`Seed`]'s shape.
const VERSION: u32 = 2;

/// The seed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The instance's identifier: what is done once for each instance is done when it changes.
    pub instance_id: String,
    /// What the guest is to call itself; nothing, if its kernel's command line said so.
    pub hostname: Option<String>,
    /// The user whose `authorized_keys` get the public keys.
    pub default_user: String,
    /// Public keys, as lines of `authorized_keys`.
    pub public_keys: Vec<String>,
    /// User data, decoded and decompressed.
    pub user_data: Option<Vec<u8>>,
}

impl Seed {
    /// The seed as it is sent.
    ///
    /// # Panics
    /// Never: the seed is plain data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(&(VERSION, self)).expect("a seed is plain data")
    }

    /// The seed that was sent; none if it is no seed, or of another version.
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
