//! Tags of resources.

use std::collections::BTreeMap;

use serde::Serialize;

/// EC2 API Reference, `Tag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tag {
    pub key: String,
    pub value: String,
}

impl Tag {
    /// Returns the `TagList` of a resource, by key.
    pub fn list(tags: &BTreeMap<String, String>) -> Vec<Tag> {
        tags.iter().map(|(key, value)| Tag { key: key.clone(), value: value.clone() }).collect()
    }
}
