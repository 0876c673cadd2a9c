//! EC2's API shapes (response types) for `--output json`.

mod network;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::limits::credit_specification;
use cloud::lifecycle::StateChange;
use cloud::timestamp;
use ec2::id::SecurityGroupId;
use ec2::state::InstanceState;
pub use network::{address, security_group, subnet, vpc};
use store::{ImageRecord, InstanceRecord, KeyPairRecord, SnapshotRecord, SnapshotState, VolumeRecord};

/// The account ID of all resources. There is only one account.
pub const OWNER: &str = "000000000000";

/// Names of security groups by ID.
pub type GroupNames = BTreeMap<SecurityGroupId, String>;

/// Returns the response of `DescribeInstances`, with instances grouped by reservation.
pub fn reservations(instances: &[InstanceRecord], groups: &GroupNames) -> Value {
    let mut launches: Vec<Vec<&InstanceRecord>> = Vec::new();
    for record in instances {
        match launches.iter_mut().find(|launch| launch[0].reservation_id == record.reservation_id) {
            Some(launch) => launch.push(record),
            None => launches.push(vec![record]),
        }
    }
    json!({"Reservations": launches.iter().map(|launch| reservation(launch, groups)).collect::<Vec<_>>()})
}

/// Returns the response of `RunInstances`, which is also an element of `DescribeInstances`.
pub fn reservation(instances: &[&InstanceRecord], groups: &GroupNames) -> Value {
    json!({
        "Groups": [],
        "Instances": instances.iter().map(|record| instance(record, groups)).collect::<Vec<_>>(),
        "OwnerId": OWNER,
        "ReservationId": instances.first().map(|record| record.reservation_id),
    })
}

/// Returns an `Instance`.
pub fn instance(record: &InstanceRecord, groups: &GroupNames) -> Value {
    let devices: Vec<Value> = record
        .block_devices
        .iter()
        .map(|device| {
            json!({
                "DeviceName": device.device_name,
                "Ebs": {
                    "AttachTime": timestamp(device.attach_time),
                    "DeleteOnTermination": device.delete_on_termination,
                    "Status": "attached",
                    "VolumeId": device.volume_id,
                },
            })
        })
        .collect();
    let mut value = json!({
        "AmiLaunchIndex": record.launch_index,
        "Architecture": "x86_64",
        "BlockDeviceMappings": devices,
        "ClientToken": record.client_token.clone().unwrap_or_default(),
        "CpuOptions": {
            "CoreCount": record.vcpus / record.threads_per_core,
            "ThreadsPerCore": record.threads_per_core,
        },
        "HibernationOptions": {"Configured": record.hibernation},
        "Hypervisor": "kvm",
        "ImageId": record.image_id,
        "InstanceId": record.id,
        "InstanceType": record.instance_type,
        "LaunchTime": timestamp(record.launch_time),
        "RootDeviceName": record.root().map(|root| root.device_name.as_str()),
        "RootDeviceType": "ebs",
        "State": state(record.state),
        "StateTransitionReason": record.state_transition_reason,
        "Tags": tags(&record.tags),
        "VirtualizationType": "hvm",
    });
    if let Some(network) = &record.network {
        network::add_interface(&mut value, network, groups);
    }
    if let Some(specification) = credit_specification(record) {
        value["CreditSpecification"] = specification;
    }
    if let Some(name) = &record.key_name {
        value["KeyName"] = json!(name);
    }
    if let Some(reason) = &record.state_reason {
        value["StateReason"] = json!({"Code": reason.code, "Message": reason.message});
    }
    value
}

/// Returns an `InstanceState`.
pub fn state(state: InstanceState) -> Value {
    json!({"Code": state.code(), "Name": state.as_str()})
}

/// Returns state changes. `list` is `StartingInstances`, `StoppingInstances` or `TerminatingInstances`.
pub fn state_changes(list: &str, changes: &[StateChange]) -> Value {
    let change = |change: &StateChange| {
        json!({
            "CurrentState": state(change.current),
            "InstanceId": change.instance,
            "PreviousState": state(change.previous),
        })
    };
    json!({list: changes.iter().map(change).collect::<Vec<_>>()})
}

/// Returns a list of `Tag`.
pub fn tags(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// Returns an `Image`.
pub fn image(record: &ImageRecord, devices: Value) -> Value {
    let mut value = json!({
        "Architecture": "x86_64",
        "BlockDeviceMappings": devices,
        "CreationDate": timestamp(record.created),
        "Description": record.description,
        "Hypervisor": "kvm",
        "ImageId": record.id,
        "ImageOwnerAlias": record.owner,
        "ImageType": "machine",
        "Name": record.name,
        "OwnerId": OWNER,
        "Public": record.visibility == store::Visibility::Public,
        "RootDeviceName": cloud::names::ROOT_DEVICE,
        "RootDeviceType": "ebs",
        "State": "available",
        "Tags": tags(&record.tags),
        "VirtualizationType": "hvm",
    });
    if let Some(version) = record.imds_support {
        value["ImdsSupport"] = json!(version);
    }
    value
}

/// Returns a `Volume`.
pub fn volume(record: &VolumeRecord) -> Value {
    let attachments: Vec<Value> = record
        .attachment
        .iter()
        .map(|attachment| {
            json!({
                "AttachTime": timestamp(attachment.attach_time),
                "DeleteOnTermination": attachment.delete_on_termination,
                "Device": attachment.device_name,
                "InstanceId": attachment.instance_id,
                "State": "attached",
                "VolumeId": record.id,
            })
        })
        .collect();
    let mut value = json!({
        "Attachments": attachments,
        "CreateTime": timestamp(record.created),
        "Encrypted": false,
        "Size": record.size.div_ceil(1 << 30),
        "SnapshotId": record.snapshot_id.map_or_else(String::new, |id| id.to_string()),
        "State": record.state.as_str(),
        "Tags": tags(&record.tags),
        "VolumeId": record.id,
        "VolumeType": record.volume_type,
    });
    if let Some(iops) = record.iops {
        value["Iops"] = json!(iops);
    }
    if let Some(throughput) = record.throughput {
        value["Throughput"] = json!(throughput);
    }
    value
}

/// Returns a `Snapshot`.
pub fn snapshot(record: &SnapshotRecord) -> Value {
    json!({
        "Description": record.description,
        "Encrypted": false,
        "OwnerId": OWNER,
        "Progress": if record.state == SnapshotState::Completed { "100%" } else { "0%" },
        "SnapshotId": record.id,
        "StartTime": timestamp(record.started),
        "State": record.state.as_str(),
        "Tags": tags(&record.tags),
        "VolumeId": record.volume_id,
        "VolumeSize": record.size.div_ceil(1 << 30),
    })
}

/// Returns a `KeyPairInfo`.
pub fn key_pair(record: &KeyPairRecord) -> Value {
    json!({
        "CreateTime": timestamp(record.created),
        "KeyFingerprint": record.fingerprint,
        "KeyName": record.name,
        "KeyPairId": record.id,
        "KeyType": record.key_type,
        "Tags": tags(&record.tags),
    })
}
