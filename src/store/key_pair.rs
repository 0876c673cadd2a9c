//! Records of key pairs in the store. They contain only the public keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use ec2::KeyPairId;

/// A key pair. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPairRecord {
    pub id: KeyPairId,
    /// Unique among all key pairs.
    pub name: String,
    pub fingerprint: String,
    /// `ed25519` or `rsa`.
    pub key_type: String,
    /// A line of `authorized_keys`.
    pub public_key: String,
    /// Time of creation or import.
    pub created: u64,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Record for KeyPairRecord {
    const TABLE: &'static str = "key_pairs";

    fn key(&self) -> String {
        self.name.clone()
    }
}
