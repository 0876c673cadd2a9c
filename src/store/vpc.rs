//! VPCs and their subnets as they are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::id::{SubnetId, VpcId};
use crate::ec2::network::{Ipv4Range, SubnetRange, Zone};

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcRecord {
    /// Its identifier.
    pub id: VpcId,
    /// Its addresses.
    pub cidr: Ipv4Range,
    /// Whether instances are in it of which no subnet is said; one VPC is it at most.
    pub is_default: bool,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl VpcRecord {
    /// The value of its `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }
}

impl Record for VpcRecord {
    const TABLE: &'static str = "vpcs";

    fn key(&self) -> String {
        self.id.to_string()
    }
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRecord {
    /// Its identifier.
    pub id: SubnetId,
    /// The VPC that it is in.
    pub vpc_id: VpcId,
    /// The VPC's addresses, which never change.
    pub vpc_cidr: Ipv4Range,
    /// Its own.
    pub cidr: Ipv4Range,
    /// Its zone.
    pub zone: Zone,
    /// Whether it is its zone's subnet in the default VPC.
    pub default_for_zone: bool,
    /// Whether instances in it have a public address, if nothing else is said.
    pub map_public_ip: bool,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl SubnetRecord {
    /// The value of its `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    /// Its addresses, and what they are for.
    pub fn range(&self) -> SubnetRange {
        SubnetRange { own: self.cidr, vpc: self.vpc_cidr }
    }
}

impl Record for SubnetRecord {
    const TABLE: &'static str = "subnets";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
