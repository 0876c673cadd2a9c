//! Volume snapshots in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LayerRecord, Record};
use crate::ec2::{ImageId, SnapshotId, VolumeId};

/// A snapshot of a volume. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The snapshot id.
    pub id: SnapshotId,
    /// The source volume, which may have been deleted.
    pub volume_id: VolumeId,
    /// The source volume's size in bytes.
    pub size: u64,
    /// The state.
    pub state: SnapshotState,
    /// The time at which the snapshot was started.
    pub started: u64,
    /// The description.
    #[serde(default)]
    pub description: String,
    /// The snapshot's file in the directory of volumes. It is no longer written.
    pub file: String,
    /// The backing files of `file`, the topmost first. None in a store of an older version, until they have been read
    /// from the files.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    /// The image, if the snapshot is of a root volume.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The state of a snapshot (EC2 API Reference, `Snapshot`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// The running VMM is being switched to another file.
    Pending,
    /// The snapshot is complete.
    Completed,
}

impl SnapshotState {
    /// EC2's state name.
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotState::Pending => "pending",
            SnapshotState::Completed => "completed",
        }
    }
}

impl SnapshotRecord {
    /// The value of the `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }
}

impl Record for SnapshotRecord {
    const TABLE: &'static str = "snapshots";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
