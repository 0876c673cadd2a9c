//! Records of image aliases in the store.

use serde::{Deserialize, Serialize};

use super::{Record, Unversioned};
use ec2::ImageId;
use ec2::image_alias::AliasPath;

/// A parameter whose value is an image ID. It has no ID of its own and no tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAlias {
    pub path: AliasPath,
    pub image_id: ImageId,
    /// Number of times that the alias was set.
    pub version: u64,
    /// Time of the last change in seconds since 1970.
    pub modified: u64,
}

impl Record for ImageAlias {
    const TABLE: &'static str = "image_aliases";

    fn key(&self) -> String {
        self.path.to_string()
    }
}

impl Unversioned for ImageAlias {}
