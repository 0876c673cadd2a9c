use super::GIB;
use ec2::api::snapshot::Snapshot;
use ec2::api::{ACCOUNT_ID, Tag, Timestamp};
use store::{SnapshotRecord, SnapshotState};

pub fn snapshot(record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        description: record.spec.description.clone(),
        encrypted: false,
        owner_id: ACCOUNT_ID,
        progress: if record.status.state == SnapshotState::Completed { "100%" } else { "0%" },
        snapshot_id: record.meta.id,
        start_time: Timestamp::from_seconds(record.meta.created),
        state: record.status.state.as_str(),
        storage_tier: "standard",
        tags: Tag::list(&record.meta.tags),
        volume_id: record.spec.volume_id,
        volume_size: record.status.size.div_ceil(GIB),
    }
}
