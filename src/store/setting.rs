//! Settings of the data directory, the counterpart of EC2's account settings, and what commands note for later ones.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Record, Unversioned};
use ec2::metadata::MetadataChange;

/// Default metadata options of new instances (`ModifyInstanceMetadataDefaults`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataDefaults {
    /// Options that are not set here come from the image.
    pub options: MetadataChange,
}

impl MetadataDefaults {
    /// The key of the only record.
    pub const KEY: &'static str = "metadata-defaults";
}

impl Record for MetadataDefaults {
    const TABLE: &'static str = "settings";

    fn key(&self) -> String {
        Self::KEY.to_string()
    }
}

impl Unversioned for MetadataDefaults {}

/// Network changes that running machines may not have yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingNetworkChanges {
    /// Number of the next change.
    pub next: u64,
    pub numbers: BTreeSet<u64>,
}

impl PendingNetworkChanges {
    /// The key of the only record.
    pub const KEY: &'static str = "pending-network-changes";
}

impl Record for PendingNetworkChanges {
    const TABLE: &'static str = "settings";

    fn key(&self) -> String {
        Self::KEY.to_string()
    }
}

impl Unversioned for PendingNetworkChanges {}
