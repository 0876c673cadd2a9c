//! Security groups as they are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::id::{SecurityGroupId, VpcId};
use crate::ec2::network::Rule;

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRecord {
    /// Its identifier.
    pub id: SecurityGroupId,
    /// The VPC whose instances can be in it.
    pub vpc_id: VpcId,
    /// Its name, which is unique in its VPC.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its rules, in the order in which they were added.
    pub rules: Vec<Rule>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Record for SecurityGroupRecord {
    const TABLE: &'static str = "security_groups";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
