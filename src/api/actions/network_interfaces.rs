//! Network interfaces. Each instance has one, whose ID is derived from the instance's.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::Listing;
use super::resource::{Listed, not_found};
use crate::error::ApiError;
use cloud::shapes;
use ec2::api::ACCOUNT_ID;
use ec2::state::InstanceState;
use store::{AddressRecord, InstanceRecord};

const NETWORK_INTERFACES: Listed = Listed {
    list: "NetworkInterfaces",
    id: "NetworkInterfaceId",
    filters: &[
        ("addresses.association.owner-id", "PrivateIpAddresses.Association.IpOwnerId"),
        ("addresses.association.public-ip", "PrivateIpAddresses.Association.PublicIp"),
        ("addresses.primary", "PrivateIpAddresses.Primary"),
        ("addresses.private-ip-address", "PrivateIpAddresses.PrivateIpAddress"),
        ("association.allocation-id", "Association.AllocationId"),
        ("association.association-id", "Association.AssociationId"),
        ("association.ip-owner-id", "Association.IpOwnerId"),
        ("association.public-ip", "Association.PublicIp"),
        ("attachment.attach-time", "Attachment.AttachTime"),
        ("attachment.attachment-id", "Attachment.AttachmentId"),
        ("attachment.delete-on-termination", "Attachment.DeleteOnTermination"),
        ("attachment.device-index", "Attachment.DeviceIndex"),
        ("attachment.instance-id", "Attachment.InstanceId"),
        ("attachment.instance-owner-id", "Attachment.InstanceOwnerId"),
        ("attachment.status", "Attachment.Status"),
        ("availability-zone", "AvailabilityZone"),
        ("availability-zone-id", "AvailabilityZoneId"),
        ("description", "Description"),
        ("group-id", "Groups.GroupId"),
        ("group-name", "Groups.GroupName"),
        ("interface-type", "InterfaceType"),
        ("mac-address", "MacAddress"),
        ("network-interface-id", "NetworkInterfaceId"),
        ("owner-id", "OwnerId"),
        ("private-dns-name", "PrivateDnsName"),
        ("private-ip-address", "PrivateIpAddress"),
        ("requester-managed", "RequesterManaged"),
        ("source-dest-check", "SourceDestCheck"),
        ("status", "Status"),
        ("subnet-id", "SubnetId"),
        ("vpc-id", "VpcId"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeNetworkInterfaces {
    network_interface_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeNetworkInterfaces, listing: Listing) -> Result<Value, ApiError> {
    let groups = context.cloud.security_groups().names()?;
    let addresses = context.cloud.addresses().list()?;
    let mut interfaces = Vec::new();
    for record in context.cloud.instances().list()? {
        let instance = super::respond(shapes::instance(&record, &groups))?;
        interfaces.extend(interface(&record, &instance, &addresses));
    }
    NETWORK_INTERFACES.respond_by(interfaces, &input.network_interface_ids, unknown, listing)
}

/// Returns the shape `NetworkInterface` of an instance, which has members that `InstanceNetworkInterface` lacks. An
/// interface is deleted when its instance is terminated.
fn interface(record: &InstanceRecord, instance: &Value, addresses: &[AddressRecord]) -> Option<Value> {
    let network = record.status.network.as_ref().filter(|_| record.status.state != InstanceState::Terminated)?;
    let mut interface = instance["NetworkInterfaces"].get(0)?.clone();
    interface["Attachment"]["InstanceId"] = json!(record.meta.id);
    interface["Attachment"]["InstanceOwnerId"] = json!(ACCOUNT_ID);
    interface["AvailabilityZone"] = json!(network.zone);
    interface["AvailabilityZoneId"] = json!(network.zone.id());
    interface["RequesterManaged"] = json!(false);
    interface["TagSet"] = json!([]);
    let elastic = addresses.iter().find(|address| address.instance() == Some(record.meta.id));
    if let Some((address, association)) = elastic.and_then(|address| Some((address, address.spec.association?))) {
        for path in ["/Association", "/PrivateIpAddresses/0/Association"] {
            if let Some(shape) = interface.pointer_mut(path) {
                shape["AllocationId"] = json!(address.meta.id);
                shape["AssociationId"] = json!(association.id);
            }
        }
    }
    Some(interface)
}

/// Returns the instance that has an interface.
pub fn instance_of(context: &Context, interface: &str) -> Result<InstanceRecord, ApiError> {
    let id = format!("i-{}", interface.strip_prefix("eni-").unwrap_or_default());
    let is_meant =
        |record: &InstanceRecord| record.meta.id.to_string() == id && record.status.state != InstanceState::Terminated;
    context.cloud.instances().list()?.into_iter().find(is_meant).ok_or_else(|| unknown(interface))
}

fn unknown(id: &str) -> ApiError {
    not_found("InvalidNetworkInterfaceID.NotFound", "networkInterface ID", id)
}
