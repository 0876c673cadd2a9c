//! Records of VPCs and subnets in the store.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Record;
use ec2::id::{SubnetId, VpcId};
use ec2::network::{SubnetRange, Zone};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcRecord {
    pub id: VpcId,
    pub cidr: Ipv4Net,
    /// True for the default VPC, of which there is at most one.
    pub is_default: bool,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl VpcRecord {
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRecord {
    pub id: SubnetId,
    pub vpc_id: VpcId,
    /// Copy of the VPC's range, which cannot be changed.
    pub vpc_cidr: Ipv4Net,
    pub cidr: Ipv4Net,
    pub zone: Zone,
    /// True if this is the zone's subnet in the default VPC.
    pub default_for_zone: bool,
    /// True if instances in the subnet get a public address by default.
    pub map_public_ip: bool,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl SubnetRecord {
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::network::{ANYWHERE, Peer, Rule};

    #[test]
    fn range_text_of_earlier_builds_is_read() {
        let vpc = r#"{"id":"vpc-0123456789abcdef0","cidr":"10.0.0.0/16","is_default":false,"tags":{}}"#;
        let record: VpcRecord = serde_json::from_str(vpc).unwrap();
        assert_eq!(record.cidr, "10.0.0.0/16".parse().unwrap());
        assert_eq!(serde_json::to_string(&record).unwrap(), vpc);
        let rule = r#"{"id":"sgr-0123456789abcdef0","egress":true,"protocol":"all","peer":{"range":"0.0.0.0/0"}}"#;
        let record: Rule = serde_json::from_str(rule).unwrap();
        assert_eq!(record.peer, Peer::Range(ANYWHERE));
        assert_eq!(serde_json::to_string(&record).unwrap(), rule);
    }
}
