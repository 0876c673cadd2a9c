//! Elastic addresses.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::Tag;
use crate::InstanceId;
use crate::id::{AllocationId, AssociationId};

/// EC2 API Reference, `Address`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Address {
    pub allocation_id: AllocationId,
    #[serde(flatten)]
    pub association: Option<AddressAssociation>,
    pub domain: &'static str,
    pub network_border_group: &'static str,
    pub public_ip: Ipv4Addr,
    pub public_ipv4_pool: &'static str,
    pub tags: Vec<Tag>,
}

/// The members of an `Address` that is associated with an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddressAssociation {
    pub association_id: AssociationId,
    pub instance_id: InstanceId,
    pub network_interface_id: String,
    pub network_interface_owner_id: &'static str,
}
