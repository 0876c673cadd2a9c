//! Records of images in the store. The manifest in an image's directory describes its contents.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use ec2::metadata::ImdsSupport;
use ec2::{ImageId, InstanceId};

/// An image. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Also the name of the image's directory.
    pub id: ImageId,
    /// Unique among registered images.
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub created: u64,
    /// The owner's user name on this host, or `wisp` for the embedded image.
    pub owner: String,
    pub visibility: Visibility,
    #[serde(default)]
    pub source_instance: Option<InstanceId>,
    /// Time of deregistration. The image's files are kept while an instance, volume or snapshot uses them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregistered: Option<u64>,
    /// Metadata service version that the image requests. Takes precedence over the version in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_support: Option<ImdsSupport>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    #[default]
    Private,
    Public,
}

impl Visibility {
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
