//! Records of elastic addresses in the store.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Record;
use ec2::InstanceId;
use ec2::id::{AllocationId, AssociationId};

/// An elastic address. It exists until it is released, even if it is not associated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    pub id: AllocationId,
    /// One of the host's loopback addresses.
    pub public_ip: Ipv4Addr,
    pub association: Option<AssociationRecord>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssociationRecord {
    pub id: AssociationId,
    pub instance_id: InstanceId,
}

impl AddressRecord {
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    pub fn instance(&self) -> Option<InstanceId> {
        self.association.map(|association| association.instance_id)
    }
}

impl Record for AddressRecord {
    const TABLE: &'static str = "addresses";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
