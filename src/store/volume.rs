//! Volumes in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BlockDeviceMapping, Record};
use crate::ec2::volume::VolumeState;
use crate::ec2::{ImageId, InstanceId, SnapshotId, VolumeId};

/// A volume. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The volume id.
    pub id: VolumeId,
    /// The size in bytes.
    pub size: u64,
    /// The volume type, for example `gp3`.
    pub volume_type: String,
    /// IOPS, if the type specifies them.
    #[serde(default)]
    pub iops: Option<u32>,
    /// Throughput in MiB/s, if the type specifies it.
    #[serde(default)]
    pub throughput: Option<u32>,
    /// The state.
    pub state: VolumeState,
    /// The creation time.
    pub created: u64,
    /// The snapshot from which the volume was created.
    #[serde(default)]
    pub snapshot_id: Option<SnapshotId>,
    /// The image, if this is a root volume.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    /// The file that the volume writes, in the directory of volumes. A snapshot takes over this file, and the volume
    /// continues in a new overlay on top of it.
    pub file: String,
    /// The backing files of `file`, the topmost first. None in a store of an older version, until they have been read
    /// from the files.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    /// The number of the volume's next file.
    #[serde(default)]
    pub generation: u32,
    /// The attachment, to at most one instance.
    #[serde(default)]
    pub attachment: Option<AttachmentRecord>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A file that holds part of a volume or snapshot and is no longer written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The path in the data directory, for example `volumes/vol-0123456789abcdef0.1.qcow2`.
    pub file: String,
    /// The file format.
    pub format: LayerFormat,
}

/// The format of a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// A raw image, such as an image's root file system.
    Raw,
    /// A qcow2 file of a volume.
    Qcow2,
}

/// The attachment of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// The instance.
    pub instance_id: InstanceId,
    /// The device name.
    pub device_name: String,
    /// The time of the attachment.
    pub attach_time: u64,
    /// True if the volume is deleted when the instance is terminated.
    pub delete_on_termination: bool,
}

impl VolumeRecord {
    /// The attachment as the instance's block device mapping.
    pub fn mapping(&self) -> Option<BlockDeviceMapping> {
        self.attachment.as_ref().map(|attachment| BlockDeviceMapping::of(self.id, attachment))
    }

    /// The value of the `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }
}

impl Record for VolumeRecord {
    const TABLE: &'static str = "volumes";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
