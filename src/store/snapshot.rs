//! Records of volume snapshots in the store.

use serde::{Deserialize, Serialize};

use super::{LayerRecord, Meta, Record, Resource};
use ec2::{ImageId, SnapshotId, VolumeId};

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    pub meta: Meta<SnapshotId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The source volume, which may have been deleted.
    pub volume_id: VolumeId,
    #[serde(default)]
    pub description: String,
    /// True if the snapshot only holds the data of an image that a command is creating.
    #[serde(default)]
    pub is_for_image: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The source volume's size in bytes.
    pub size: u64,
    pub state: SnapshotState,
    /// Name of the snapshot's file in the volumes directory. It is not written once the snapshot is complete.
    pub file: String,
    /// Backing files of `file`, topmost first. `None` in a record from an older version, until they are read from the
    /// image headers.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    /// The image that the source volume's data is based on, if any.
    #[serde(default)]
    pub image_id: Option<ImageId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// The snapshot is not complete: a running VMM may still write to the snapshot's file.
    Pending,
    Completed,
}

impl SnapshotState {
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotState::Pending => "pending",
            SnapshotState::Completed => "completed",
        }
    }
}

impl Record for SnapshotRecord {
    const TABLE: &'static str = "snapshots";

    fn key(&self) -> String {
        self.meta.id.to_string()
    }
}

impl Resource for SnapshotRecord {
    type Id = SnapshotId;

    fn meta(&self) -> &Meta<SnapshotId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<SnapshotId> {
        &mut self.meta
    }
}
