//! Records of elastic addresses in the store.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::InstanceId;
use ec2::id::{AllocationId, AssociationId};

/// An elastic address. It exists until it is released, even if it is not associated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    pub meta: Meta<AllocationId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub association: Option<AssociationRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// One of the host's loopback addresses. Unique among all elastic addresses.
    pub public_ip: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssociationRecord {
    pub id: AssociationId,
    pub instance_id: InstanceId,
}

impl AddressRecord {
    pub fn instance(&self) -> Option<InstanceId> {
        self.spec.association.map(|association| association.instance_id)
    }
}

impl Record for AddressRecord {
    const TABLE: &'static str = "addresses";
    const UNIQUE_KEYS: &'static [&'static str] = &["public_ip"];

    fn key(&self) -> String {
        self.meta.id.to_string()
    }

    fn unique_key(&self, _name: &str) -> Option<String> {
        Some(self.status.public_ip.to_string())
    }
}

impl Resource for AddressRecord {
    type Id = AllocationId;

    fn meta(&self) -> &Meta<AllocationId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<AllocationId> {
        &mut self.meta
    }
}
