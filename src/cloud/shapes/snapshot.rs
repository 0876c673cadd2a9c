use super::GIB;
use ec2::api::snapshot::Snapshot;
use ec2::api::{ACCOUNT_ID, Tag, Timestamp};
use store::{SnapshotRecord, SnapshotState};

pub fn snapshot(record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        description: record.description.clone(),
        encrypted: false,
        owner_id: ACCOUNT_ID,
        progress: if record.state == SnapshotState::Completed { "100%" } else { "0%" },
        snapshot_id: record.id,
        start_time: Timestamp::from_seconds(record.started),
        state: record.state.as_str(),
        storage_tier: "standard",
        tags: Tag::list(&record.tags),
        volume_id: record.volume_id,
        volume_size: record.size.div_ceil(GIB),
    }
}
