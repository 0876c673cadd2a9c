//! Instances, volumes and images in the shapes of the EC2 API, for `--output json`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cloud::lifecycle::StateChange;
use crate::cloud::timestamp;
use crate::ec2::metadata::MetadataOptions;
use crate::ec2::network::{Peer, Rule, Traffic, ZONE, private_dns_name};
use crate::ec2::state::InstanceState;
use crate::store::{
    ImageRecord, InstanceRecord, KeyPairRecord, SecurityGroupRecord, SnapshotRecord, SnapshotState, VolumeRecord,
};

/// An account's number, which every owner of a thing has in EC2; there is one account here.
pub const OWNER: &str = "000000000000";

/// `DescribeInstances`, grouped by reservation.
pub fn reservations(instances: &[InstanceRecord]) -> Value {
    let mut groups: Vec<Vec<&InstanceRecord>> = Vec::new();
    for record in instances {
        match groups.iter_mut().find(|group| group[0].reservation_id == record.reservation_id) {
            Some(group) => group.push(record),
            None => groups.push(vec![record]),
        }
    }
    json!({"Reservations": groups.iter().map(|group| reservation(group)).collect::<Vec<_>>()})
}

/// `RunInstances`, and one of `DescribeInstances`' reservations.
pub fn reservation(instances: &[&InstanceRecord]) -> Value {
    json!({
        "Groups": [],
        "Instances": instances.iter().map(|record| instance(record)).collect::<Vec<_>>(),
        "OwnerId": OWNER,
        "ReservationId": instances.first().map(|record| record.reservation_id),
    })
}

/// `Instance`.
pub fn instance(record: &InstanceRecord) -> Value {
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
        value["PrivateIpAddress"] = json!(network.private_ip);
        value["PrivateDnsName"] = json!(private_dns_name(network.private_ip));
        if let Some(public) = network.public_ip {
            value["PublicIpAddress"] = json!(public);
        }
        value["SecurityGroups"] =
            network.security_groups.iter().map(|id| json!({"GroupId": id})).collect::<Vec<_>>().into();
        value["Placement"] = json!({"AvailabilityZone": ZONE});
        value["MetadataOptions"] = metadata_options(&network.metadata_options);
    }
    if let Some(name) = &record.key_name {
        value["KeyName"] = json!(name);
    }
    if let Some(reason) = &record.state_reason {
        value["StateReason"] = json!({"Code": reason.code, "Message": reason.message});
    }
    value
}

/// `InstanceMetadataOptionsResponse`.
fn metadata_options(options: &MetadataOptions) -> Value {
    let enabled = |on| if on { "enabled" } else { "disabled" };
    json!({
        "HttpEndpoint": enabled(options.endpoint),
        "HttpPutResponseHopLimit": options.hop_limit,
        "HttpTokens": if options.tokens_required { "required" } else { "optional" },
        "InstanceMetadataTags": enabled(options.tags),
        "State": "applied",
    })
}

/// `SecurityGroup`, with the rules as `SecurityGroupRule` has them beside.
pub fn security_group(record: &SecurityGroupRecord) -> Value {
    let permissions = |egress: bool| {
        let mut all: Vec<Value> = Vec::new();
        let mut seen: Vec<Traffic> = Vec::new();
        for rule in record.rules.iter().filter(|rule| rule.egress == egress) {
            let at = seen.iter().position(|traffic| *traffic == rule.traffic).unwrap_or_else(|| {
                seen.push(rule.traffic);
                let mut permission =
                    json!({"IpProtocol": rule.traffic.protocol(), "IpRanges": [], "UserIdGroupPairs": []});
                if let Some((from, to)) = rule.traffic.ports() {
                    permission["FromPort"] = json!(from);
                    permission["ToPort"] = json!(to);
                }
                all.push(permission);
                all.len() - 1
            });
            let (list, peer) = match rule.peer {
                Peer::Range(range) => ("IpRanges", json!({"CidrIp": range})),
                Peer::Group(id) => ("UserIdGroupPairs", json!({"GroupId": id, "UserId": OWNER})),
            };
            if let Some(list) = all[at][list].as_array_mut() {
                list.push(peer);
            }
        }
        all
    };
    let rule = |rule: &Rule| {
        let mut value = json!({
            "GroupId": record.id,
            "IpProtocol": rule.traffic.protocol(),
            "IsEgress": rule.egress,
            "SecurityGroupRuleId": rule.id,
        });
        let (from, to) = rule.traffic.ports().unwrap_or((-1, -1));
        value["FromPort"] = json!(from);
        value["ToPort"] = json!(to);
        match rule.peer {
            Peer::Range(range) => value["CidrIpv4"] = json!(range),
            Peer::Group(id) => value["ReferencedGroupInfo"] = json!({"GroupId": id}),
        }
        value
    };
    json!({
        "Description": record.description,
        "GroupId": record.id,
        "GroupName": record.name,
        "IpPermissions": permissions(false),
        "IpPermissionsEgress": permissions(true),
        "OwnerId": OWNER,
        "SecurityGroupRules": record.rules.iter().map(rule).collect::<Vec<_>>(),
        "Tags": tags(&record.tags),
    })
}

/// `InstanceState`.
pub fn state(state: InstanceState) -> Value {
    json!({"Code": state.code(), "Name": state.as_str()})
}

/// `StartingInstances`, `StoppingInstances`, `TerminatingInstances`.
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

/// A list of tags.
pub fn tags(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// `Image`.
pub fn image(record: &ImageRecord, devices: Value) -> Value {
    json!({
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
        "Public": record.visibility == crate::store::Visibility::Public,
        "RootDeviceName": crate::cloud::launch::ROOT_DEVICE,
        "RootDeviceType": "ebs",
        "State": "available",
        "Tags": tags(&record.tags),
        "VirtualizationType": "hvm",
    })
}

/// `Volume`.
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

/// `Snapshot`.
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

/// `KeyPairInfo`.
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
