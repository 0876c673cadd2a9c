//! VPCs and subnets.

use serde::Serialize;

use super::{EmptyList, Tag};
use crate::id::{SubnetId, VpcId};
use crate::network::Zone;

/// `DhcpOptionsId` of all VPCs: the domain and the name server that DHCP gives guests.
pub const DHCP_OPTIONS_ID: &str = "dopt-00000000000000000";

/// EC2 API Reference, `Vpc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Vpc {
    pub cidr_block: String,
    pub cidr_block_association_set: Vec<VpcCidrBlockAssociation>,
    pub dhcp_options_id: &'static str,
    pub instance_tenancy: &'static str,
    pub is_default: bool,
    pub owner_id: &'static str,
    pub state: &'static str,
    pub tags: Vec<Tag>,
    pub vpc_id: VpcId,
}

/// EC2 API Reference, `VpcCidrBlockAssociation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VpcCidrBlockAssociation {
    pub association_id: String,
    pub cidr_block: String,
    pub cidr_block_state: VpcCidrBlockState,
}

/// EC2 API Reference, `VpcCidrBlockState`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VpcCidrBlockState {
    pub state: &'static str,
}

/// EC2 API Reference, `Subnet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Subnet {
    pub assign_ipv6_address_on_creation: bool,
    pub availability_zone: Zone,
    pub availability_zone_id: String,
    pub available_ip_address_count: usize,
    pub cidr_block: String,
    pub default_for_az: bool,
    pub enable_dns64: bool,
    pub ipv6_cidr_block_association_set: EmptyList,
    pub ipv6_native: bool,
    pub map_customer_owned_ip_on_launch: bool,
    pub map_public_ip_on_launch: bool,
    pub owner_id: &'static str,
    pub private_dns_name_options_on_launch: PrivateDnsNameOptions,
    pub state: &'static str,
    pub subnet_arn: String,
    pub subnet_id: SubnetId,
    pub tags: Vec<Tag>,
    pub vpc_id: VpcId,
}

/// EC2 API Reference, `PrivateDnsNameOptionsOnLaunch` and `PrivateDnsNameOptionsResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PrivateDnsNameOptions {
    #[serde(rename = "EnableResourceNameDnsAAAARecord")]
    pub enable_resource_name_dns_aaaa_record: bool,
    pub enable_resource_name_dns_a_record: bool,
    pub hostname_type: &'static str,
}

impl PrivateDnsNameOptions {
    /// Host names are derived from addresses, and not from instance IDs.
    pub const IP_NAME: PrivateDnsNameOptions = PrivateDnsNameOptions {
        enable_resource_name_dns_aaaa_record: false,
        enable_resource_name_dns_a_record: false,
        hostname_type: "ip-name",
    };
}
