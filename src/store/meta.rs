//! Metadata that the records of all kinds of resources have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Metadata of a resource with an ID of type `I`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta<I> {
    pub id: I,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Client token of the request that created the resource.
    #[serde(default)]
    pub client_token: Option<String>,
    /// Creation time in seconds since 1970, or 0 if an older version of Wisp created the resource without a time.
    #[serde(default)]
    pub created: u64,
    /// Number of times that the record was written. The store sets it, and refuses to replace a newer generation.
    pub generation: u64,
}

impl<I> Meta<I> {
    /// Returns the metadata of a resource that is not in the store yet.
    pub fn new(id: I, created: u64, tags: BTreeMap<String, String>) -> Meta<I> {
        Meta { id, tags, client_token: None, created, generation: 0 }
    }

    /// Returns the value of the Name tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }
}
