//! Images in the store. The contents of an image are in its bundle's manifest, in the image's directory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::metadata::ImdsSupport;
use crate::ec2::{ImageId, InstanceId};

/// An image. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image id, which is also the name of its directory.
    pub id: ImageId,
    /// The name, which is unique among registered images.
    pub name: String,
    /// The description.
    #[serde(default)]
    pub description: String,
    /// The creation time.
    pub created: u64,
    /// The owner: the user's name on this host.
    pub owner: String,
    /// The visibility.
    pub visibility: Visibility,
    /// The instance from which the image was created.
    #[serde(default)]
    pub source_instance: Option<InstanceId>,
    /// The time of deregistration. Instances that use a deregistered image keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregistered: Option<u64>,
    /// The metadata service version that the image requests, if its manifest does not specify one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_support: Option<ImdsSupport>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The visibility of an image (EC2 API Reference, `Image`, `Public`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// Visible to its owner.
    #[default]
    Private,
    /// Visible to all.
    Public,
}

impl Visibility {
    /// EC2's name of the visibility.
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
