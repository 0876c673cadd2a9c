//! Volume snapshots in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LayerRecord, Record};
use ec2::{ImageId, SnapshotId, VolumeId};

/// A snapshot of a volume. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    pub id: SnapshotId,
    /// The source volume, which may have been deleted.
    pub volume_id: VolumeId,
    /// The source volume's size in bytes.
    pub size: u64,
    pub state: SnapshotState,
    pub started: u64,
    #[serde(default)]
    pub description: String,
    /// A file in the directory of volumes. It is no longer written.
    pub file: String,
    /// Backing files of `file`, topmost first. `None` in a record from an older version, until they are read from the
    /// image headers.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    /// Set for a root volume.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// The running VMM is being switched to another file.
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

impl SnapshotRecord {
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
