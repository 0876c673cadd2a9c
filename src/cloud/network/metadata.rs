//! Builds the metadata of an instance (Amazon EC2 User Guide, "Instance metadata categories"). Categories without a
//! counterpart in Wisp are omitted, except those that programs rely on.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::json;

use crate::timestamp_seconds;
use ec2::InstanceId;
use ec2::network::{REGION, SubnetRange, Zone, mac_address, private_dns_name};
use ec2::tag::is_metadata_key;
use machine::network::MacAddress;
use store::{InstanceRecord, NetworkRecord, SecurityGroupRecord, SubnetRecord, VolumeRecord};

/// Metadata values by their path below `meta-data/`.
pub(super) type Tree = BTreeMap<String, String>;

const ACCOUNT: &str = "000000000000";

#[derive(Debug)]
pub(super) struct Known {
    pub subnet: SubnetRecord,
    pub public_key: Option<String>,
    pub volumes: Vec<VolumeRecord>,
    pub groups: Vec<SecurityGroupRecord>,
}

pub(super) fn tree_of(record: &InstanceRecord, network: &NetworkRecord, known: &Known) -> Tree {
    let Known { subnet, public_key, volumes, groups } = known;
    let place = (network.private_ip, subnet.range(), network.zone);
    let mut tree =
        common_tree(record.meta.id, &record.spec.image_id.to_string(), &record.spec.size.instance_type, place);
    let mut put = |path: &str, value: String| drop(tree.insert(path.to_string(), value));
    let names: Vec<&str> = groups.iter().map(|group| group.spec.name.as_str()).collect();
    let ids: Vec<String> = groups.iter().map(|group| group.meta.id.to_string()).collect();
    let interface = interface_path(record.meta.id);
    put("security-groups", names.join("\n"));
    put(&format!("{interface}/security-groups"), names.join("\n"));
    put(&format!("{interface}/security-group-ids"), ids.join("\n"));
    put(&format!("{interface}/subnet-id"), network.subnet_id.to_string());
    put(&format!("{interface}/vpc-id"), network.vpc_id.to_string());
    put("ami-launch-index", record.status.launch.launch_index.to_string());
    put("reservation-id", record.status.launch.reservation_id.to_string());
    put("hibernation/configured", record.spec.hibernation.to_string());
    let device = |name: &str| name.trim_start_matches("/dev/").to_string();
    for (index, mapping) in record.status.block_devices.iter().enumerate() {
        let known = volumes.iter().any(|volume| volume.meta.id == mapping.volume_id);
        match index {
            0 => {
                put("block-device-mapping/ami", device(&mapping.device_name));
                put("block-device-mapping/root", mapping.device_name.clone());
            }
            _ if known => put(&format!("block-device-mapping/ebs{index}"), device(&mapping.device_name)),
            _ => {}
        }
    }
    if let (Some(key), Some(name)) = (public_key, &record.spec.key_name) {
        put("public-keys/0/openssh-key", openssh_key(key, name));
    }
    if let Some(public) = network.public_ip {
        put("public-ipv4", public.to_string());
        put(&format!("{interface}/public-ipv4s"), public.to_string());
        put(&format!("{interface}/ipv4-associations/{public}"), network.private_ip.to_string());
    }
    // Keys that cannot be part of a path are refused while tags are served, but may have been set earlier.
    for (key, value) in record.meta.tags.iter().filter(|(key, _)| is_metadata_key(key)) {
        put(&format!("tags/instance/{key}"), value.clone());
    }
    tree
}

/// Formats a public key as a line of `authorized_keys`, with the key pair's name as the comment.
fn openssh_key(public_key: &str, name: &str) -> String {
    let words: Vec<&str> = public_key.split_whitespace().take(2).chain([name]).collect();
    words.join(" ") + "\n"
}

pub(super) fn run_tree(id: InstanceId, image: &str, address: Ipv4Addr, subnet: SubnetRange) -> Tree {
    common_tree(id, image, "custom", (address, subnet, Zone::default()))
}

fn interface_path(id: InstanceId) -> String {
    format!("network/interfaces/macs/{}", MacAddress(mac_address(id)))
}

fn common_tree(id: InstanceId, image: &str, instance_type: &str, place: (Ipv4Addr, SubnetRange, Zone)) -> Tree {
    let (address, subnet, zone) = place;
    let name = private_dns_name(address);
    let vpc_range = subnet.vpc.to_string();
    let mac = MacAddress(mac_address(id)).to_string();
    let fixed = [
        ("ami-id", image.to_string()),
        ("ami-launch-index", "0".into()),
        ("ami-manifest-path", "(unknown)".into()),
        ("events/maintenance/history", "[]".into()),
        ("events/maintenance/scheduled", "[]".into()),
        ("hostname", name.clone()),
        ("instance-action", "none".into()),
        ("instance-id", id.to_string()),
        ("instance-life-cycle", "on-demand".into()),
        ("instance-type", instance_type.to_string()),
        ("local-hostname", name.clone()),
        ("local-ipv4", address.to_string()),
        ("mac", mac.clone()),
        ("placement/availability-zone", zone.to_string()),
        ("placement/availability-zone-id", zone.id()),
        ("placement/region", REGION.into()),
        ("profile", "default-hvm".into()),
        ("security-groups", "default".into()),
        ("services/domain", "amazonaws.com".into()),
        ("services/partition", "aws".into()),
        ("system", "nitro".into()),
    ];
    let of_interface = [
        ("device-number", "0".to_string()),
        ("local-hostname", name),
        ("local-ipv4s", address.to_string()),
        ("mac", mac),
        ("owner-id", ACCOUNT.into()),
        ("security-groups", "default".into()),
        ("subnet-ipv4-cidr-block", subnet.own.to_string()),
        ("vpc-ipv4-cidr-block", vpc_range.clone()),
        ("vpc-ipv4-cidr-blocks", vpc_range),
    ];
    let interface = interface_path(id);
    let fixed = fixed.into_iter().map(|(path, value)| (path.to_string(), value));
    fixed.chain(of_interface.into_iter().map(|(path, value)| (format!("{interface}/{path}"), value))).collect()
}

/// Returns the instance identity document (Amazon EC2 User Guide, "Instance identity documents").
pub(super) fn identity_document(record: &InstanceRecord, network: &NetworkRecord) -> String {
    let document = json!({
        "accountId": ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": network.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "imageId": record.spec.image_id,
        "instanceId": record.meta.id,
        "instanceType": record.spec.size.instance_type,
        "kernelId": null,
        "marketplaceProductCodes": null,
        "pendingTime": timestamp_seconds(record.status.launch_time),
        "privateIp": network.private_ip,
        "ramdiskId": null,
        "region": REGION,
        "version": "2017-09-30",
    });
    serde_json::to_string_pretty(&document).expect("a document is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssh_key_has_key_pair_name_as_comment() {
        assert_eq!(openssh_key("ssh-ed25519 AAAA me@host\n", "my own key"), "ssh-ed25519 AAAA my own key\n");
    }
}
