//! Security groups and their rules.

use serde::Serialize;

use super::{EmptyList, Tag};
use crate::id::{SecurityGroupId, SecurityGroupRuleId, VpcId};

/// EC2 API Reference, `SecurityGroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SecurityGroup {
    pub description: String,
    pub group_id: SecurityGroupId,
    pub group_name: String,
    pub ip_permissions: Vec<IpPermission>,
    pub ip_permissions_egress: Vec<IpPermission>,
    pub owner_id: &'static str,
    pub security_group_arn: String,
    pub tags: Vec<Tag>,
    pub vpc_id: VpcId,
}

/// EC2 API Reference, `IpPermission`: the rules of one direction for the same traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpPermission {
    /// The first port, or the ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_port: Option<i32>,
    pub ip_protocol: String,
    pub ip_ranges: Vec<IpRange>,
    pub ipv6_ranges: EmptyList,
    pub prefix_list_ids: EmptyList,
    /// The last port, or the ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_port: Option<i32>,
    pub user_id_group_pairs: Vec<UserIdGroupPair>,
}

/// EC2 API Reference, `IpRange`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpRange {
    pub cidr_ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// EC2 API Reference, `UserIdGroupPair`, and `ReferencedSecurityGroup`, which has no description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UserIdGroupPair {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub group_id: SecurityGroupId,
    pub user_id: &'static str,
}

/// EC2 API Reference, `SecurityGroupRule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SecurityGroupRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr_ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The first port or the ICMP type, or -1 for any.
    pub from_port: i32,
    pub group_id: SecurityGroupId,
    pub group_owner_id: &'static str,
    pub ip_protocol: String,
    pub is_egress: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referenced_group_info: Option<UserIdGroupPair>,
    pub security_group_rule_arn: String,
    pub security_group_rule_id: SecurityGroupRuleId,
    pub tags: Vec<Tag>,
    /// The last port or the ICMP code, or -1 for any.
    pub to_port: i32,
}

/// EC2 API Reference, `RevokedSecurityGroupRule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RevokedSecurityGroupRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr_ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub from_port: i32,
    pub group_id: SecurityGroupId,
    pub ip_protocol: String,
    pub is_egress: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referenced_group_id: Option<SecurityGroupId>,
    pub security_group_rule_id: SecurityGroupRuleId,
    pub to_port: i32,
}
