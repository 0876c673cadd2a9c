//! Elastic addresses in the store.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::InstanceId;
use crate::ec2::id::{AllocationId, AssociationId};

/// An elastic address. It exists until it is released, associated or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// The allocation id.
    pub id: AllocationId,
    /// The public address, one of the host's loopback addresses.
    pub public_ip: Ipv4Addr,
    /// The current association.
    pub association: Option<AssociationRecord>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The association of an elastic address with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssociationRecord {
    /// The association id.
    pub id: AssociationId,
    /// The instance.
    pub instance_id: InstanceId,
}

impl AddressRecord {
    /// The value of the `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    /// The associated instance.
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
