//! Records of security groups in the store.

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::id::{SecurityGroupId, VpcId};
use ec2::network::Rule;

/// A security group. It has no status, because it is nothing but its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRecord {
    pub meta: Meta<SecurityGroupId>,
    pub spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub vpc_id: VpcId,
    /// Unique in the VPC.
    pub name: String,
    pub description: String,
    /// In the order in which they were added.
    pub rules: Vec<Rule>,
}

impl Record for SecurityGroupRecord {
    const TABLE: &'static str = "security_groups";
    const UNIQUE_KEYS: &'static [&'static str] = &["name"];

    fn key(&self) -> String {
        self.meta.id.to_string()
    }

    fn unique_key(&self, _name: &str) -> Option<String> {
        Some(format!("{}/{}", self.spec.vpc_id, self.spec.name))
    }
}

impl Resource for SecurityGroupRecord {
    type Id = SecurityGroupId;

    fn meta(&self) -> &Meta<SecurityGroupId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<SecurityGroupId> {
        &mut self.meta
    }
}
