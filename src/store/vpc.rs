//! Records of VPCs in the store.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::id::VpcId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcRecord {
    pub meta: Meta<VpcId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub cidr: Ipv4Net,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// True for the default VPC, of which there is at most one.
    pub is_default: bool,
}

impl Record for VpcRecord {
    const TABLE: &'static str = "vpcs";
    const UNIQUE_KEYS: &'static [&'static str] = &["default"];

    fn key(&self) -> String {
        self.meta.id.to_string()
    }

    fn unique_key(&self, _name: &str) -> Option<String> {
        self.status.is_default.then(|| "true".to_string())
    }
}

impl Resource for VpcRecord {
    type Id = VpcId;

    fn meta(&self) -> &Meta<VpcId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<VpcId> {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::network::{ANYWHERE, Peer, Rule};

    #[test]
    fn range_text_of_earlier_builds_is_read() {
        let spec = r#"{"cidr":"10.0.0.0/16"}"#;
        let record: Spec = serde_json::from_str(spec).unwrap();
        assert_eq!(record.cidr, "10.0.0.0/16".parse().unwrap());
        assert_eq!(serde_json::to_string(&record).unwrap(), spec);
        let rule = r#"{"id":"sgr-0123456789abcdef0","egress":true,"protocol":"all","peer":{"range":"0.0.0.0/0"}}"#;
        let record: Rule = serde_json::from_str(rule).unwrap();
        assert_eq!(record.peer, Peer::Range(ANYWHERE));
        assert_eq!(serde_json::to_string(&record).unwrap(), rule);
    }
}
