//! Elastic addresses as they are kept.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::InstanceId;
use crate::ec2::id::{AllocationId, AssociationId};

/// An elastic address: it stays until it is released, whatever it is associated with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// Its identifier.
    pub id: AllocationId,
    /// The address, one of the host's loopback interface.
    pub public_ip: Ipv4Addr,
    /// What has it now.
    pub association: Option<AssociationRecord>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// An elastic address' association with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssociationRecord {
    /// Its identifier.
    pub id: AssociationId,
    /// The instance.
    pub instance_id: InstanceId,
}

impl AddressRecord {
    /// The value of its `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    /// The instance that has it.
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
