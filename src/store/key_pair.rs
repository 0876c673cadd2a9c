//! Key pairs as they are kept: their public halves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::KeyPairId;

/// A key pair. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPairRecord {
    /// Its identifier.
    pub id: KeyPairId,
    /// Its name, which is unique.
    pub name: String,
    /// EC2's fingerprint of it.
    pub fingerprint: String,
    /// `ed25519` or `rsa`.
    pub key_type: String,
    /// The public key, as a line of `authorized_keys`.
    pub public_key: String,
    /// When it was made or imported.
    pub created: u64,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Record for KeyPairRecord {
    const TABLE: &'static str = "key_pairs";

    fn key(&self) -> String {
        self.name.clone()
    }
}
