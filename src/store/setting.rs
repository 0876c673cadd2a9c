//! Settings of the data directory, as EC2 has settings of an account.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::metadata::MetadataChange;

/// Metadata options of launches that do not say otherwise (`ModifyInstanceMetadataDefaults`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataDefaults {
    /// What they are; what is left out, the image decides.
    pub options: MetadataChange,
}

impl MetadataDefaults {
    /// The record's key: there is one.
    pub const KEY: &'static str = "metadata-defaults";
}

impl Record for MetadataDefaults {
    const TABLE: &'static str = "settings";

    fn key(&self) -> String {
        Self::KEY.to_string()
    }
}
