//! Snapshots of volumes.

use serde::Deserialize;
use serde_json::Value;

use super::Context;
use super::input::{Listing, check_dry_run};
use super::resource::{Listed, id};
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::shapes;
use ec2::api::ACCOUNT_ID;
use ec2::id::{Snapshot, Volume};

const SNAPSHOTS: Listed = Listed {
    list: "Snapshots",
    id: "SnapshotId",
    filters: &[
        ("description", "Description"),
        ("encrypted", "Encrypted"),
        ("owner-id", "OwnerId"),
        ("progress", "Progress"),
        ("snapshot-id", "SnapshotId"),
        ("start-time", "StartTime"),
        ("status", "State"),
        ("storage-tier", "StorageTier"),
        ("volume-id", "VolumeId"),
        ("volume-size", "VolumeSize"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeSnapshots {
    snapshot_ids: Vec<String>,
    owner_ids: Vec<String>,
    restorable_by_user_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeSnapshots, listing: Listing) -> Result<Value, ApiError> {
    let records = context.cloud.snapshots().list()?;
    let mut snapshots: Vec<Value> =
        records.iter().map(|record| super::respond(shapes::snapshot(record))).collect::<Result<_, _>>()?;
    // All snapshots are the account's own, and none is public or shared.
    let is_own = |users: &[String]| users.is_empty() || users.iter().any(|user| user == "self" || user == ACCOUNT_ID);
    if !is_own(&input.owner_ids) || !is_own(&input.restorable_by_user_ids) {
        snapshots.clear();
    }
    SNAPSHOTS.respond::<Snapshot>(snapshots, &input.snapshot_ids, listing)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateSnapshot {
    volume_id: String,
    description: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default)]
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateSnapshot) -> Result<Value, ApiError> {
    let volume = context.cloud.volumes().find(&id::<Volume>(&input.volume_id)?.to_string())?;
    let tags = tags_for("snapshot", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let description = input.description.unwrap_or_default();
    super::respond(shapes::snapshot(&context.cloud.snapshots().create(volume.meta.id, &description, tags)?))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteSnapshot {
    snapshot_id: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteSnapshot) -> Result<Value, ApiError> {
    let snapshot = context.cloud.snapshots().find(&id::<Snapshot>(&input.snapshot_id)?.to_string())?;
    check_dry_run(input.dry_run)?;
    context.cloud.snapshots().delete(snapshot.meta.id)?;
    Ok(Value::Null)
}
