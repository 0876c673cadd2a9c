//! Images as they are kept. What is in an image is its bundle's manifest, in the image's folder.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::{ImageId, InstanceId};

/// An image. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its identifier, which is its folder's name too.
    pub id: ImageId,
    /// Its name: unique among the registered ones.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// When it was made.
    pub created: u64,
    /// Who made it: the user's name on this host.
    pub owner: String,
    /// Who may use it.
    pub visibility: Visibility,
    /// The instance that it was made of.
    #[serde(default)]
    pub source_instance: Option<InstanceId>,
    /// When it was deregistered: then only the instances that use it keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregistered: Option<u64>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// Who may use an image (EC2 API Reference, `Image`, `Public`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// Its owner.
    #[default]
    Private,
    /// Everybody.
    Public,
}

impl Visibility {
    /// EC2's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Visibility::Private => "private",
            Visibility::Public => "public",
        }
    }
}

impl Record for ImageRecord {
    const TABLE: &'static str = "images";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
