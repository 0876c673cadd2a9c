//! Network ACLs. Each VPC has its default one, which allows all traffic, because Wisp filters by security groups only.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::Listing;
use super::resource::{Listed, not_found};
use crate::error::ApiError;
use ec2::api::ACCOUNT_ID;
use store::{SubnetRecord, VpcRecord};

const NETWORK_ACLS: Listed = Listed {
    list: "NetworkAcls",
    id: "NetworkAclId",
    filters: &[
        ("association.association-id", "Associations.NetworkAclAssociationId"),
        ("association.network-acl-id", "Associations.NetworkAclId"),
        ("association.subnet-id", "Associations.SubnetId"),
        ("default", "IsDefault"),
        ("entry.cidr", "Entries.CidrBlock"),
        ("entry.egress", "Entries.Egress"),
        ("entry.protocol", "Entries.Protocol"),
        ("entry.rule-action", "Entries.RuleAction"),
        ("entry.rule-number", "Entries.RuleNumber"),
        ("network-acl-id", "NetworkAclId"),
        ("owner-id", "OwnerId"),
        ("vpc-id", "VpcId"),
    ],
};

/// The rule that denies what no other rule matches. EC2 displays it as `*`.
const LAST_RULE: u32 = 32_767;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeNetworkAcls {
    network_acl_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeNetworkAcls, listing: Listing) -> Result<Value, ApiError> {
    let subnets = context.cloud.subnets().list()?;
    let acls = context.cloud.vpcs().list()?.iter().map(|vpc| default_acl(vpc, &subnets)).collect();
    let unknown = |id: &str| not_found("InvalidNetworkAclID.NotFound", "networkAcl ID", id);
    NETWORK_ACLS.respond_by(acls, &input.network_acl_ids, unknown, listing)
}

fn default_acl(vpc: &VpcRecord, subnets: &[SubnetRecord]) -> Value {
    let id = vpc.meta.id.with_prefix("acl");
    let entry = |egress: bool, number: u32, action: &str| json!({"CidrBlock": "0.0.0.0/0", "Egress": egress, "Protocol": "-1", "RuleAction": action, "RuleNumber": number});
    let own = subnets.iter().filter(|subnet| subnet.spec.vpc_id == vpc.meta.id);
    let association = |subnet: &SubnetRecord| {
        let association = subnet.meta.id.with_prefix("aclassoc");
        json!({"NetworkAclAssociationId": association, "NetworkAclId": id, "SubnetId": subnet.meta.id})
    };
    json!({
        "Associations": own.map(association).collect::<Vec<_>>(),
        "Entries": [
            entry(true, 100, "allow"),
            entry(true, LAST_RULE, "deny"),
            entry(false, 100, "allow"),
            entry(false, LAST_RULE, "deny"),
        ],
        "IsDefault": true,
        "NetworkAclId": id,
        "OwnerId": ACCOUNT_ID,
        "Tags": [],
        "VpcId": vpc.meta.id,
    })
}
