//! The network interface of an instance. Its ID is derived from the instance's, which has exactly one interface.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::{EmptyList, Timestamp};
use crate::id::{SecurityGroupId, SubnetId, VpcId};

/// EC2 API Reference, `GroupIdentifier`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GroupIdentifier {
    pub group_id: SecurityGroupId,
    /// None if the group does not exist any more.
    pub group_name: Option<String>,
}

/// EC2 API Reference, `InstanceNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceNetworkInterface {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub association: Option<InstanceNetworkInterfaceAssociation>,
    pub attachment: InstanceNetworkInterfaceAttachment,
    pub description: &'static str,
    pub groups: Vec<GroupIdentifier>,
    pub interface_type: &'static str,
    pub ipv6_addresses: EmptyList,
    pub mac_address: String,
    pub network_interface_id: String,
    pub owner_id: &'static str,
    pub private_dns_name: String,
    pub private_ip_address: Ipv4Addr,
    pub private_ip_addresses: [InstancePrivateIpAddress; 1],
    pub source_dest_check: bool,
    pub status: &'static str,
    pub subnet_id: SubnetId,
    pub vpc_id: VpcId,
}

/// EC2 API Reference, `InstanceNetworkInterfaceAssociation`: a public address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceNetworkInterfaceAssociation {
    /// The account that allocated the elastic address, or `amazon` for any other public address.
    pub ip_owner_id: &'static str,
    /// Empty, because public addresses have no DNS names.
    pub public_dns_name: &'static str,
    pub public_ip: Ipv4Addr,
}

/// EC2 API Reference, `InstanceNetworkInterfaceAttachment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceNetworkInterfaceAttachment {
    pub attach_time: Timestamp,
    pub attachment_id: String,
    pub delete_on_termination: bool,
    pub device_index: u32,
    pub network_card_index: u32,
    pub status: &'static str,
}

/// EC2 API Reference, `InstancePrivateIpAddress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstancePrivateIpAddress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub association: Option<InstanceNetworkInterfaceAssociation>,
    pub primary: bool,
    pub private_dns_name: String,
    pub private_ip_address: Ipv4Addr,
}
