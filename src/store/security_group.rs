//! Records of security groups in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use ec2::id::{SecurityGroupId, VpcId};
use ec2::network::Rule;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRecord {
    pub id: SecurityGroupId,
    pub vpc_id: VpcId,
    /// Unique in the VPC.
    pub name: String,
    pub description: String,
    /// In the order in which they were added.
    pub rules: Vec<Rule>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Record for SecurityGroupRecord {
    const TABLE: &'static str = "security_groups";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
