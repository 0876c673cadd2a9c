//! Security groups in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::id::{SecurityGroupId, VpcId};
use crate::ec2::network::Rule;

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRecord {
    /// The group id.
    pub id: SecurityGroupId,
    /// The VPC.
    pub vpc_id: VpcId,
    /// The name, which is unique in the VPC.
    pub name: String,
    /// The description.
    pub description: String,
    /// The rules, in the order of their addition.
    pub rules: Vec<Rule>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Record for SecurityGroupRecord {
    const TABLE: &'static str = "security_groups";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
