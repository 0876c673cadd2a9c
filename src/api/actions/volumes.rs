//! Volumes, their attachments and their modifications.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::resource::{Listed, id, missing, not_found};
use super::subnets::zone;
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::shapes;
use cloud::volume::NewVolume;
use ec2::block_device::DeviceName;
use ec2::id::{Instance, Snapshot, Volume};
use ec2::network::Zone;
use ec2::volume::{VolumeChange, VolumeSize, VolumeSpec, VolumeType};
use ec2::{Ec2Error, VolumeId};
use store::VolumeRecord;

const VOLUMES: Listed = Listed {
    list: "Volumes",
    id: "VolumeId",
    filters: &[
        ("attachment.attach-time", "Attachments.AttachTime"),
        ("attachment.delete-on-termination", "Attachments.DeleteOnTermination"),
        ("attachment.device", "Attachments.Device"),
        ("attachment.instance-id", "Attachments.InstanceId"),
        ("attachment.status", "Attachments.State"),
        ("availability-zone", "AvailabilityZone"),
        ("availability-zone-id", "AvailabilityZoneId"),
        ("create-time", "CreateTime"),
        ("encrypted", "Encrypted"),
        ("multi-attach-enabled", "MultiAttachEnabled"),
        ("size", "Size"),
        ("snapshot-id", "SnapshotId"),
        ("status", "State"),
        ("volume-id", "VolumeId"),
        ("volume-type", "VolumeType"),
    ],
};

const MODIFICATIONS: Listed = Listed {
    list: "VolumesModifications",
    id: "VolumeId",
    filters: &[
        ("modification-state", "ModificationState"),
        ("original-iops", "OriginalIops"),
        ("original-size", "OriginalSize"),
        ("original-volume-type", "OriginalVolumeType"),
        ("originalMultiAttachEnabled", "OriginalMultiAttachEnabled"),
        ("start-time", "StartTime"),
        ("target-iops", "TargetIops"),
        ("target-size", "TargetSize"),
        ("target-volume-type", "TargetVolumeType"),
        ("targetMultiAttachEnabled", "TargetMultiAttachEnabled"),
        ("volume-id", "VolumeId"),
    ],
};

const STATUSES: Listed = Listed {
    list: "VolumeStatuses",
    id: "VolumeId",
    filters: &[
        ("availability-zone", "AvailabilityZone"),
        ("volume-status.details-name", "VolumeStatus.Details.Name"),
        ("volume-status.details-status", "VolumeStatus.Details.Status"),
        ("volume-status.status", "VolumeStatus.Status"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeVolumes {
    volume_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeVolumes, listing: Listing) -> Result<Value, ApiError> {
    VOLUMES.respond::<Volume>(shapes_of(context)?, &input.volume_ids, listing)
}

/// Returns the shapes of all volumes.
fn shapes_of(context: &Context) -> Result<Vec<Value>, ApiError> {
    let instances = context.cloud.instances().list()?;
    let zone_of = |record: &VolumeRecord| {
        let attachment = record.status.attachment.as_ref()?;
        let instance = instances.iter().find(|instance| instance.meta.id == attachment.instance_id)?;
        Some(instance.status.network.as_ref()?.zone)
    };
    context.cloud.volumes().list()?.iter().map(|record| shape(record, zone_of(record))).collect()
}

/// Returns the shape of a volume. One that was created without a zone is in the zone of its instance.
fn shape(record: &VolumeRecord, instance: Option<Zone>) -> Result<Value, ApiError> {
    let mut volume = super::respond(shapes::volume(record))?;
    let zone = record.spec.zone.or(instance).unwrap_or_default();
    volume["AvailabilityZone"] = json!(zone);
    volume["AvailabilityZoneId"] = json!(zone.id());
    Ok(volume)
}

fn find(context: &Context, text: &str) -> Result<VolumeRecord, ApiError> {
    Ok(context.cloud.volumes().find(&id::<Volume>(text)?.to_string())?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateVolume {
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    size: Option<u64>,
    snapshot_id: Option<String>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    client_token: Option<String>,
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

/// Creates a volume. Without a type, it is gp2, as in EC2's API.
pub fn create(context: &Context, input: CreateVolume) -> Result<Value, ApiError> {
    let zone = zone(input.availability_zone.as_deref(), input.availability_zone_id.as_deref())?;
    let volume_type = input.volume_type.as_deref().map_or(Ok(VolumeType::Gp2), str::parse)?;
    let snapshot = match &input.snapshot_id {
        Some(text) => Some(context.cloud.snapshots().find(&id::<Snapshot>(text)?.to_string())?),
        None => None,
    };
    let new = NewVolume {
        spec: VolumeSpec { size: size(input.size)?, volume_type, iops: input.iops, throughput: input.throughput },
        snapshot: snapshot.map(|snapshot| snapshot.meta.id.to_string()),
        tags: tags_for("volume", &input.tag_specifications)?,
        zone: Some(zone.ok_or_else(|| missing("AvailabilityZone"))?),
        client_token: input.client_token,
    };
    check_dry_run(input.dry_run)?;
    shape(&context.cloud.volumes().create(&new)?, None)
}

fn size(gib: Option<u64>) -> Result<Option<VolumeSize>, Ec2Error> {
    let sized = |gib| VolumeSize::from_gib(gib).ok_or(gib);
    let rule = "it must be a positive number of GiB.";
    gib.map(sized).transpose().map_err(|gib| Ec2Error::invalid_parameter("Size", gib, rule))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteVolume {
    volume_id: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteVolume) -> Result<Value, ApiError> {
    let volume = find(context, &input.volume_id)?;
    check_dry_run(input.dry_run)?;
    context.cloud.volumes().delete(volume.meta.id)?;
    Ok(Value::Null)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachVolume {
    volume_id: String,
    instance_id: String,
    device: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn attach(context: &Context, input: AttachVolume) -> Result<Value, ApiError> {
    let volume = find(context, &input.volume_id)?;
    let instance = context.cloud.instances().find(&id::<Instance>(&input.instance_id)?.to_string())?;
    let device: DeviceName = input.device.parse()?;
    check_dry_run(input.dry_run)?;
    let record = context.cloud.volumes().attach(volume.meta.id, instance.meta.id, Some(device), false)?;
    Ok(super::respond(shapes::volume(&record))?["Attachments"][0].clone())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DetachVolume {
    volume_id: String,
    instance_id: Option<String>,
    device: Option<String>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    dry_run: bool,
}

pub fn detach(context: &Context, input: DetachVolume) -> Result<Value, ApiError> {
    let volume = find(context, &input.volume_id)?;
    let mut attachment = super::respond(shapes::volume(&volume))?["Attachments"][0].clone();
    if let Some(instance) = &input.instance_id {
        id::<Instance>(instance)?;
    }
    for (member, given) in [("InstanceId", &input.instance_id), ("Device", &input.device)] {
        if let Some(other) = given.as_ref().filter(|given| attachment[member] != given.as_str()) {
            let noun = format!("attachment of {} with the {member}", volume.meta.id);
            return Err(not_found("InvalidAttachment.NotFound", &noun, other));
        }
    }
    check_dry_run(input.dry_run)?;
    context.cloud.volumes().detach(volume.meta.id, input.force)?;
    attachment["State"] = json!("detached");
    Ok(attachment)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifyVolume {
    volume_id: String,
    size: Option<u64>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    #[serde(default)]
    dry_run: bool,
}

pub fn modify(context: &Context, input: ModifyVolume) -> Result<Value, ApiError> {
    let volume = find(context, &input.volume_id)?;
    let change = VolumeChange {
        size: size(input.size)?,
        volume_type: input.volume_type.as_deref().map(str::parse).transpose()?,
        iops: input.iops,
        throughput: input.throughput,
    };
    check_dry_run(input.dry_run)?;
    let record = context.cloud.volumes().modify(volume.meta.id, &change)?;
    Ok(json!({"VolumeModification": super::respond(shapes::volume_modification(&record))?}))
}

/// Lists the latest modification of each volume that was modified.
pub fn modifications(context: &Context, input: DescribeVolumes, listing: Listing) -> Result<Value, ApiError> {
    let records = context.cloud.volumes().list()?;
    for text in &input.volume_ids {
        let volume = id::<Volume>(text)?;
        if records.iter().all(|record| record.meta.id != volume) {
            return Err(VolumeId::not_found(text).into());
        }
    }
    let modifications = records.iter().filter_map(shapes::volume_modification).map(super::respond);
    let never = |id: &str| not_found("InvalidVolumeModification.NotFound", "modification of the volume", id);
    MODIFICATIONS.respond_by(modifications.collect::<Result<_, _>>()?, &input.volume_ids, never, listing)
}

/// Lists the status checks of volumes. Their data is in files of this host, so their input and output is enabled.
pub fn status(context: &Context, input: DescribeVolumes, listing: Listing) -> Result<Value, ApiError> {
    let status = |volume: Value| {
        let detail = |name: &str, status: &str| json!({"Name": name, "Status": status});
        let details = [detail("io-enabled", "passed"), detail("io-performance", "not-applicable")];
        json!({
            "Actions": [],
            "AvailabilityZone": volume["AvailabilityZone"],
            "AvailabilityZoneId": volume["AvailabilityZoneId"],
            "Events": [],
            "VolumeId": volume["VolumeId"],
            "VolumeStatus": {"Details": details, "Status": "ok"},
        })
    };
    let statuses = shapes_of(context)?.into_iter().map(status).collect();
    STATUSES.respond::<Volume>(statuses, &input.volume_ids, listing)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeVolumeAttribute {
    volume_id: String,
    attribute: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn attribute(context: &Context, input: DescribeVolumeAttribute) -> Result<Value, ApiError> {
    let volume = find(context, &input.volume_id)?;
    check_dry_run(input.dry_run)?;
    // The model has these two attributes only.
    Ok(match input.attribute.as_str() {
        "autoEnableIO" => json!({"AutoEnableIO": {"Value": false}, "VolumeId": volume.meta.id}),
        _ => json!({"ProductCodes": [], "VolumeId": volume.meta.id}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_gib() {
        assert_eq!(size(Some(8)), Ok(VolumeSize::from_gib(8)));
        assert_eq!(size(None), Ok(None));
        assert!(size(Some(0)).is_err() && size(Some(u64::MAX)).is_err());
    }
}
