//! Records of key pairs in the store. They contain only the public keys.

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::KeyPairId;

/// A key pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPairRecord {
    pub meta: Meta<KeyPairId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Unique among all key pairs.
    pub name: String,
    /// `ed25519` or `rsa`.
    pub key_type: String,
    /// A line of `authorized_keys`.
    pub public_key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub fingerprint: String,
}

impl Record for KeyPairRecord {
    const TABLE: &'static str = "key_pairs";

    fn key(&self) -> String {
        self.spec.name.clone()
    }
}

impl Resource for KeyPairRecord {
    type Id = KeyPairId;

    fn meta(&self) -> &Meta<KeyPairId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<KeyPairId> {
        &mut self.meta
    }
}
