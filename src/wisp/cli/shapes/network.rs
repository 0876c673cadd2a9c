//! EC2's API shapes for networks.

use serde_json::{Value, json};

use super::{GroupNames, OWNER, tags};
use ec2::metadata::MetadataOptions;
use ec2::network::{Peer, Rule, Traffic, private_dns_name};
use store::{AddressRecord, NetworkRecord, SecurityGroupRecord, SubnetRecord, VpcRecord};

/// Adds the fields for its network interface to an `Instance`.
pub(super) fn add_interface(instance: &mut Value, network: &NetworkRecord, groups: &GroupNames) {
    let group = |id| json!({"GroupId": id, "GroupName": groups.get(id)});
    instance["VpcId"] = json!(network.vpc_id);
    instance["SubnetId"] = json!(network.subnet_id);
    instance["PrivateIpAddress"] = json!(network.private_ip);
    instance["PrivateDnsName"] = json!(private_dns_name(network.private_ip));
    if let Some(public) = network.public_ip {
        instance["PublicIpAddress"] = json!(public);
    }
    instance["SecurityGroups"] = network.security_groups.iter().map(group).collect::<Vec<_>>().into();
    instance["Placement"] = json!({"AvailabilityZone": network.zone});
    instance["MetadataOptions"] = metadata_options(&network.metadata_options);
}

/// Returns an `InstanceMetadataOptionsResponse`.
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

/// Returns a `Vpc`.
pub fn vpc(record: &VpcRecord) -> Value {
    json!({
        "CidrBlock": record.cidr,
        "InstanceTenancy": "default",
        "IsDefault": record.is_default,
        "OwnerId": OWNER,
        "State": "available",
        "Tags": tags(&record.tags),
        "VpcId": record.id,
    })
}

/// Returns a `Subnet` that has `free` unused addresses.
pub fn subnet(record: &SubnetRecord, free: usize) -> Value {
    json!({
        "AvailabilityZone": record.zone,
        "AvailabilityZoneId": record.zone.id(),
        "AvailableIpAddressCount": free,
        "CidrBlock": record.cidr,
        "DefaultForAz": record.default_for_zone,
        "MapPublicIpOnLaunch": record.map_public_ip,
        "OwnerId": OWNER,
        "State": "available",
        "SubnetId": record.id,
        "Tags": tags(&record.tags),
        "VpcId": record.vpc_id,
    })
}

/// Returns an `Address`.
pub fn address(record: &AddressRecord) -> Value {
    let mut value = json!({
        "AllocationId": record.id,
        "Domain": "vpc",
        "PublicIp": record.public_ip,
        "Tags": tags(&record.tags),
    });
    if let Some(association) = record.association {
        value["AssociationId"] = json!(association.id);
        value["InstanceId"] = json!(association.instance_id);
    }
    value
}

/// Returns a `SecurityGroup`, with its rules also as a list of `SecurityGroupRule`.
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
        "VpcId": record.vpc_id,
    })
}
