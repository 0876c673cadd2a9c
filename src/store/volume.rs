//! Records of volumes in the store.

use serde::{Deserialize, Serialize};

use super::{BlockDeviceMapping, Meta, Record, Resource};
use ec2::network::Zone;
use ec2::volume::{AttachmentState, VolumeState};
use ec2::{ImageId, InstanceId, SnapshotId, VolumeId};

/// A volume. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub meta: Meta<VolumeId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// In bytes.
    pub size: u64,
    /// For example `gp3`.
    pub volume_type: String,
    #[serde(default)]
    pub iops: Option<u32>,
    /// In MiB/s.
    #[serde(default)]
    pub throughput: Option<u32>,
    #[serde(default)]
    pub snapshot_id: Option<SnapshotId>,
    /// Zone that the API's request named. An instance in any zone can use the volume.
    #[serde(default)]
    pub zone: Option<Zone>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: VolumeState,
    /// The image that the volume's data is based on: set for a root volume, or a volume from a snapshot of one.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    /// Name of the file in the volumes directory that the volume's writes go to. A snapshot or fork takes this file
    /// over, and the volume then writes to a new overlay on top of it.
    pub file: String,
    /// Number of `file`, which increases with each snapshot or fork.
    #[serde(default)]
    pub file_number: u32,
    /// Backing files of `file`, topmost first. `None` in a record from an older version, until they are read from the
    /// image headers.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    #[serde(default)]
    pub attachment: Option<AttachmentRecord>,
    #[serde(default)]
    pub modification: Option<ModificationRecord>,
}

/// The latest modification of a volume. It is complete: the volume has the target's size, type, IOPS and throughput.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModificationRecord {
    pub original: FiguresRecord,
    pub target: FiguresRecord,
    pub start_time: u64,
    pub end_time: u64,
}

/// The members of a volume's [`Spec`] that a modification changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiguresRecord {
    pub size: u64,
    pub volume_type: String,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
}

impl FiguresRecord {
    pub fn of(spec: &Spec) -> FiguresRecord {
        FiguresRecord {
            size: spec.size,
            volume_type: spec.volume_type.clone(),
            iops: spec.iops,
            throughput: spec.throughput,
        }
    }
}

/// A file that contains part of a volume's or snapshot's data and is no longer written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Path in the data directory, for example `volumes/vol-0123456789abcdef0.1.qcow2`.
    pub file: String,
    pub format: LayerFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// A raw image, such as an image's root file system.
    Raw,
    Qcow2,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    pub instance_id: InstanceId,
    pub device_name: String,
    pub attach_time: u64,
    pub delete_on_termination: bool,
    #[serde(default)]
    pub state: AttachmentState,
}

impl VolumeRecord {
    pub fn mapping(&self) -> Option<BlockDeviceMapping> {
        self.status.attachment.as_ref().map(|attachment| BlockDeviceMapping::of(self.meta.id, attachment))
    }
}

impl Record for VolumeRecord {
    const TABLE: &'static str = "volumes";

    fn key(&self) -> String {
        self.meta.id.to_string()
    }
}

impl Resource for VolumeRecord {
    type Id = VolumeId;

    fn meta(&self) -> &Meta<VolumeId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<VolumeId> {
        &mut self.meta
    }
}
