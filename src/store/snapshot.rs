//! Snapshots as they are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LayerRecord, Record};
use crate::ec2::{ImageId, SnapshotId, VolumeId};

/// A snapshot of a volume. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its identifier.
    pub id: SnapshotId,
    /// The volume that it is of; it may be gone.
    pub volume_id: VolumeId,
    /// That volume's size in bytes.
    pub size: u64,
    /// Its state.
    pub state: SnapshotState,
    /// When it was taken.
    pub started: u64,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Its file, in the folder of volumes: nothing writes it any more.
    pub file: String,
    /// Backing files of that file, the topmost first; none if they are not known yet, in a store of an older version.
    #[serde(default)]
    pub backing: Option<Vec<LayerRecord>>,
    /// The image that it rests on, where it is of a root volume.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A snapshot's states (EC2 API Reference, `Snapshot`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// A running machine is being told to leave the file.
    Pending,
    /// It is whole.
    Completed,
}

impl SnapshotState {
    /// EC2's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotState::Pending => "pending",
            SnapshotState::Completed => "completed",
        }
    }
}

impl SnapshotRecord {
    /// The value of its `Name` tag.
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
