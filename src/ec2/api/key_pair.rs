//! Key pairs.

use serde::Serialize;

use super::{Tag, Timestamp};
use crate::KeyPairId;

/// EC2 API Reference, `KeyPairInfo`, without the public key, as EC2 returns it by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyPairInfo {
    pub create_time: Timestamp,
    pub key_fingerprint: String,
    pub key_name: String,
    pub key_pair_id: KeyPairId,
    pub key_type: String,
    pub tags: Vec<Tag>,
}
