//! Records of subnets in the store.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::id::{SubnetId, VpcId};
use ec2::network::{SubnetRange, Zone};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRecord {
    pub meta: Meta<SubnetId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub vpc_id: VpcId,
    pub cidr: Ipv4Net,
    pub zone: Zone,
    /// True if instances in the subnet get a public address by default.
    pub map_public_ip: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Copy of the VPC's range, which cannot be changed.
    pub vpc_cidr: Ipv4Net,
    /// True if this is the zone's subnet in the default VPC.
    pub default_for_zone: bool,
}

impl SubnetRecord {
    pub fn range(&self) -> SubnetRange {
        SubnetRange { own: self.spec.cidr, vpc: self.status.vpc_cidr }
    }
}

impl Record for SubnetRecord {
    const TABLE: &'static str = "subnets";

    fn key(&self) -> String {
        self.meta.id.to_string()
    }
}

impl Resource for SubnetRecord {
    type Id = SubnetId;

    fn meta(&self) -> &Meta<SubnetId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<SubnetId> {
        &mut self.meta
    }
}
