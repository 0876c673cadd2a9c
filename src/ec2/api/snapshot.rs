//! Snapshots of volumes.

use serde::Serialize;

use super::{Tag, Timestamp};
use crate::{SnapshotId, VolumeId};

/// EC2 API Reference, `Snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Snapshot {
    pub description: String,
    pub encrypted: bool,
    pub owner_id: &'static str,
    /// In percent, for example `100%`.
    pub progress: &'static str,
    pub snapshot_id: SnapshotId,
    pub start_time: Timestamp,
    pub state: &'static str,
    pub storage_tier: &'static str,
    pub tags: Vec<Tag>,
    pub volume_id: VolumeId,
    /// The source volume's size in GiB.
    pub volume_size: u64,
}
