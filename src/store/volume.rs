//! Volumes as they are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BlockDeviceMapping, Record};
use crate::ec2::volume::VolumeState;
use crate::ec2::{ImageId, InstanceId, SnapshotId, VolumeId};

/// A volume. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its identifier.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size: u64,
    /// Its type: `gp3`.
    pub volume_type: String,
    /// Its operations a second, where the type has a figure.
    #[serde(default)]
    pub iops: Option<u32>,
    /// Its MiB a second, where the type has a figure.
    #[serde(default)]
    pub throughput: Option<u32>,
    /// Its state.
    pub state: VolumeState,
    /// When it was made.
    pub created: u64,
    /// The snapshot that it was made from.
    #[serde(default)]
    pub snapshot_id: Option<SnapshotId>,
    /// The image that it is a root volume of.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    /// The file that it writes, in the folder of volumes. A snapshot takes the file, and the volume gets a new one over
    /// it.
    pub file: String,
    /// Backing files of that file, the topmost first; none if they are not known yet, in a store of an older version.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    /// The number of the next such file.
    #[serde(default)]
    pub generation: u32,
    /// Where it is attached: to one instance at most.
    #[serde(default)]
    pub attachment: Option<AttachmentRecord>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A file that holds a part of a volume or a snapshot and is written by nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Path in the data directory, such as `volumes/vol-0123456789abcdef0.1.qcow2`.
    pub file: String,
    /// Format of the file.
    pub format: LayerFormat,
}

/// Format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// An image's root file system.
    Raw,
    /// A file of a volume.
    Qcow2,
}

/// Where a volume is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// To which instance.
    pub instance_id: InstanceId,
    /// As which device.
    pub device_name: String,
    /// Since when.
    pub attach_time: u64,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
}

impl VolumeRecord {
    /// Its instance's side of its attachment.
    pub fn mapping(&self) -> Option<BlockDeviceMapping> {
        self.attachment.as_ref().map(|attachment| BlockDeviceMapping::of(self.id, attachment))
    }

    /// The value of its `Name` tag.
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
