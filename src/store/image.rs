//! Records of images in the store. The manifest in an image's directory describes its contents.

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::metadata::ImdsSupport;
use ec2::{ImageId, InstanceId};

/// An image. Its ID is also the name of its directory. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub meta: Meta<ImageId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Unique among registered images.
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub visibility: Visibility,
    #[serde(default)]
    pub source_instance: Option<InstanceId>,
    /// Metadata service version that the image requests. Takes precedence over the version in the manifest.
    #[serde(default)]
    pub imds_support: Option<ImdsSupport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The owner's user name on this host, or `wisp` for the embedded image.
    pub owner: String,
    /// Time of deregistration. The image's files are kept while an instance, volume or snapshot uses them.
    #[serde(default)]
    pub deregistered: Option<u64>,
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
    const UNIQUE_KEYS: &'static [&'static str] = &["name"];

    fn key(&self) -> String {
        self.meta.id.to_string()
    }

    fn unique_key(&self, _name: &str) -> Option<String> {
        self.status.deregistered.is_none().then(|| self.spec.name.clone())
    }
}

impl Resource for ImageRecord {
    type Id = ImageId;

    fn meta(&self) -> &Meta<ImageId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<ImageId> {
        &mut self.meta
    }
}
