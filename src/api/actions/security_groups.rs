//! Security groups and their rules.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::filter::Name;
use super::input::{Listing, check_dry_run};
use super::permission::{IpPermission, RuleRequest};
use super::resource::{Listed, combination, id, missing};
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::network::{Chosen, RuleSpec};
use cloud::shapes;
use ec2::id::{SecurityGroup, SecurityGroupRule, SecurityGroupRuleId, Vpc};
use ec2::network::check_description;
use ec2::{Ec2Error, ErrorCode};
use store::SecurityGroupRecord;

const GROUPS: Listed = Listed {
    list: "SecurityGroups",
    id: "GroupId",
    filters: &[
        ("description", "Description"),
        ("egress.ip-permission.cidr", "IpPermissionsEgress.IpRanges.CidrIp"),
        ("egress.ip-permission.from-port", "IpPermissionsEgress.FromPort"),
        ("egress.ip-permission.group-id", "IpPermissionsEgress.UserIdGroupPairs.GroupId"),
        ("egress.ip-permission.protocol", "IpPermissionsEgress.IpProtocol"),
        ("egress.ip-permission.to-port", "IpPermissionsEgress.ToPort"),
        ("egress.ip-permission.user-id", "IpPermissionsEgress.UserIdGroupPairs.UserId"),
        ("group-id", "GroupId"),
        ("group-name", "GroupName"),
        ("ip-permission.cidr", "IpPermissions.IpRanges.CidrIp"),
        ("ip-permission.from-port", "IpPermissions.FromPort"),
        ("ip-permission.group-id", "IpPermissions.UserIdGroupPairs.GroupId"),
        ("ip-permission.protocol", "IpPermissions.IpProtocol"),
        ("ip-permission.to-port", "IpPermissions.ToPort"),
        ("ip-permission.user-id", "IpPermissions.UserIdGroupPairs.UserId"),
        ("owner-id", "OwnerId"),
        ("vpc-id", "VpcId"),
    ],
};

const RULE_FILTERS: &[Name] = &[("group-id", "GroupId"), ("security-group-rule-id", "SecurityGroupRuleId")];
const RULES: Listed = Listed { list: "SecurityGroupRules", id: "SecurityGroupRuleId", filters: RULE_FILTERS };

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeSecurityGroups {
    group_ids: Vec<String>,
    group_names: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeSecurityGroups, listing: Listing) -> Result<Value, ApiError> {
    let groups = context.cloud.security_groups().list(None)?;
    let mut ids = input.group_ids;
    for name in &input.group_names {
        ids.push(named(context, name)?.meta.id.to_string());
    }
    let groups = groups.iter().map(|group| super::respond(shapes::security_group(group)));
    GROUPS.respond::<SecurityGroup>(groups.collect::<Result<_, _>>()?, &ids, listing)
}

/// Returns the group of the default VPC with a name. The API has names for this VPC only.
fn named(context: &Context, name: &str) -> Result<SecurityGroupRecord, ApiError> {
    let default = context.cloud.vpcs().list()?.into_iter().find(|vpc| vpc.status.is_default);
    let groups = context.cloud.security_groups().list(None)?;
    let is_meant = |group: &SecurityGroupRecord| {
        group.spec.name == name && default.as_ref().is_some_and(|vpc| vpc.meta.id == group.spec.vpc_id)
    };
    groups.into_iter().find(is_meant).ok_or_else(|| {
        let name: String = name.chars().take(100).collect();
        let what = format!("The security group '{name}' does not exist in the default VPC");
        Ec2Error::refused(ErrorCode::InvalidGroupNotFound, what, None).into()
    })
}

/// Returns the group that a request names by its ID or by its name in the default VPC.
fn find(context: &Context, group_id: Option<&str>, name: Option<&str>) -> Result<SecurityGroupRecord, ApiError> {
    match (group_id, name) {
        (Some(given), _) => Ok(context.cloud.security_groups().find(&id::<SecurityGroup>(given)?.to_string())?),
        (None, Some(name)) => named(context, name),
        (None, None) => Err(missing("GroupId or GroupName")),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateSecurityGroup {
    group_name: String,
    description: String,
    vpc_id: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default)]
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateSecurityGroup) -> Result<Value, ApiError> {
    let vpc = input.vpc_id.as_deref().map(id::<Vpc>).transpose()?.map(|id| id.to_string());
    check_description(&input.description)?;
    let tags = tags_for("security-group", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let groups = context.cloud.security_groups();
    let record = groups.create(&input.group_name, &input.description, vpc.as_deref(), tags)?;
    let shape = super::respond(shapes::security_group(&record))?;
    Ok(json!({
        "GroupId": shape["GroupId"], "SecurityGroupArn": shape["SecurityGroupArn"], "Tags": shape["Tags"],
    }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeleteSecurityGroup {
    group_id: Option<String>,
    group_name: Option<String>,
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteSecurityGroup) -> Result<Value, ApiError> {
    let group = find(context, input.group_id.as_deref(), input.group_name.as_deref())?;
    check_dry_run(input.dry_run)?;
    let record = context.cloud.security_groups().delete(&group.meta.id.to_string())?;
    Ok(json!({"GroupId": record.meta.id, "Return": true}))
}

/// Input of the actions that add and remove rules. The members from `CidrIp` on are a rule of their own.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChangeRules {
    group_id: Option<String>,
    group_name: Option<String>,
    ip_permissions: Vec<IpPermission>,
    security_group_rule_ids: Vec<String>,
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
    cidr_ip: Option<String>,
    from_port: Option<i32>,
    ip_protocol: Option<String>,
    source_security_group_name: Option<String>,
    source_security_group_owner_id: Option<String>,
    to_port: Option<i32>,
}

impl ChangeRules {
    fn group(&self, context: &Context) -> Result<SecurityGroupRecord, ApiError> {
        find(context, self.group_id.as_deref(), self.group_name.as_deref())
    }

    /// Returns the rules, at least one. Fails with `unsupported` if one has a peer that Wisp does not support.
    fn specs(&self, egress: bool, unsupported: ErrorCode) -> Result<Vec<RuleSpec>, ApiError> {
        let flat = IpPermission::flat(
            self.ip_protocol.clone(),
            (self.from_port, self.to_port),
            self.cidr_ip.clone(),
            (self.source_security_group_name.clone(), self.source_security_group_owner_id.clone()),
        );
        specs(self.ip_permissions.iter().chain(&flat), egress, unsupported)
    }

    fn chosen(&self, group: &SecurityGroupRecord, egress: bool) -> Result<Chosen, ApiError> {
        if self.security_group_rule_ids.is_empty() {
            return Ok(Chosen::Like(self.specs(egress, NO_RULE)?));
        }
        if !self.ip_permissions.is_empty() {
            return Err(combination("The parameters IpPermissions and SecurityGroupRuleIds cannot be used together."));
        }
        Ok(Chosen::Ids(rules_of(group, &self.security_group_rule_ids, egress)?))
    }
}

/// Error code for an existing rule that a request names with a peer that Wisp does not support: there is none.
const NO_RULE: ErrorCode = ErrorCode::InvalidPermissionNotFound;

fn specs<'a>(
    permissions: impl Iterator<Item = &'a IpPermission>,
    egress: bool,
    unsupported: ErrorCode,
) -> Result<Vec<RuleSpec>, ApiError> {
    let mut specs = Vec::new();
    for permission in permissions {
        if let Some(member) = permission.unsupported() {
            let what = format!("Wisp does not support rules with {member}.");
            return Err(Ec2Error::refused(unsupported, what, None).into());
        }
        specs.extend(permission.specs(egress)?);
    }
    if specs.is_empty() { Err(missing("IpPermissions")) } else { Ok(specs) }
}

/// Parses the IDs of rules, all of which must be rules of one direction of a group.
fn rules_of(group: &SecurityGroupRecord, ids: &[String], egress: bool) -> Result<Vec<SecurityGroupRuleId>, ApiError> {
    let mut rules = Vec::new();
    for text in ids {
        let id = id::<SecurityGroupRule>(text)?;
        if !group.spec.rules.iter().any(|rule| rule.id == id && rule.egress == egress) {
            return Err(SecurityGroupRuleId::not_found(text).into());
        }
        rules.push(id);
    }
    Ok(rules)
}

pub fn authorize_ingress(context: &Context, input: ChangeRules) -> Result<Value, ApiError> {
    authorize(context, &input, false)
}

pub fn authorize_egress(context: &Context, input: ChangeRules) -> Result<Value, ApiError> {
    authorize(context, &input, true)
}

fn authorize(context: &Context, input: &ChangeRules, egress: bool) -> Result<Value, ApiError> {
    let group = input.group(context)?;
    let specs = input.specs(egress, ErrorCode::UnsupportedOperation)?;
    let tags: BTreeMap<String, String> = tags_for("security-group-rule", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let groups = context.cloud.security_groups();
    let changed = super::report(groups.authorize(&group.meta.id.to_string(), &specs, &tags)?);
    let rules: Vec<_> =
        changed.rules.iter().map(|rule| shapes::security_group_rule(changed.group.meta.id, rule)).collect();
    Ok(json!({"Return": true, "SecurityGroupRules": super::respond(rules)?}))
}

pub fn revoke_ingress(context: &Context, input: ChangeRules) -> Result<Value, ApiError> {
    revoke(context, &input, false)
}

pub fn revoke_egress(context: &Context, input: ChangeRules) -> Result<Value, ApiError> {
    revoke(context, &input, true)
}

fn revoke(context: &Context, input: &ChangeRules, egress: bool) -> Result<Value, ApiError> {
    let group = input.group(context)?;
    let chosen = input.chosen(&group, egress)?;
    check_dry_run(input.dry_run)?;
    let changed = super::report(context.cloud.security_groups().revoke(&group.meta.id.to_string(), &chosen)?);
    let rules: Vec<_> = changed.rules.iter().map(|rule| shapes::revoked_rule(changed.group.meta.id, rule)).collect();
    Ok(json!({"Return": true, "RevokedSecurityGroupRules": super::respond(rules)?}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeSecurityGroupRules {
    security_group_rule_ids: Vec<String>,
}

pub fn describe_rules(
    context: &Context,
    input: DescribeSecurityGroupRules,
    listing: Listing,
) -> Result<Value, ApiError> {
    let groups = context.cloud.security_groups().list(None)?;
    let rules = groups.iter().flat_map(shapes::security_group_rules).map(super::respond);
    let ids = &input.security_group_rule_ids;
    RULES.respond::<SecurityGroupRule>(rules.collect::<Result<_, _>>()?, ids, listing)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifySecurityGroupRules {
    group_id: String,
    #[serde(default)]
    security_group_rules: Vec<RuleUpdate>,
    #[serde(default)]
    dry_run: bool,
}

/// EC2 API Reference, `SecurityGroupRuleUpdate`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleUpdate {
    security_group_rule_id: String,
    #[serde(default)]
    security_group_rule: RuleRequest,
}

pub fn modify_rules(context: &Context, input: ModifySecurityGroupRules) -> Result<Value, ApiError> {
    let group = find(context, Some(&input.group_id), None)?;
    let mut changes = Vec::new();
    for update in &input.security_group_rules {
        changes.push((id::<SecurityGroupRule>(&update.security_group_rule_id)?, update.security_group_rule.spec()?));
    }
    check_dry_run(input.dry_run)?;
    super::report(context.cloud.security_groups().modify_rules(&group.meta.id.to_string(), &changes)?);
    Ok(json!({"Return": true}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateDescriptions {
    group_id: Option<String>,
    group_name: Option<String>,
    ip_permissions: Vec<IpPermission>,
    security_group_rule_descriptions: Vec<RuleDescription>,
    dry_run: bool,
}

/// EC2 API Reference, `SecurityGroupRuleDescription`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RuleDescription {
    security_group_rule_id: String,
    description: Option<String>,
}

pub fn describe_ingress(context: &Context, input: UpdateDescriptions) -> Result<Value, ApiError> {
    update_descriptions(context, &input, false)
}

pub fn describe_egress(context: &Context, input: UpdateDescriptions) -> Result<Value, ApiError> {
    update_descriptions(context, &input, true)
}

fn update_descriptions(context: &Context, input: &UpdateDescriptions, egress: bool) -> Result<Value, ApiError> {
    let group = find(context, input.group_id.as_deref(), input.group_name.as_deref())?;
    let (chosen, descriptions): (Chosen, Vec<Option<String>>) = match &input.security_group_rule_descriptions[..] {
        [] => {
            let specs = specs(input.ip_permissions.iter(), egress, NO_RULE)?;
            let descriptions = specs.iter().map(|spec| spec.description.clone()).collect();
            (Chosen::Like(specs), descriptions)
        }
        given if input.ip_permissions.is_empty() => {
            let ids: Vec<String> = given.iter().map(|rule| rule.security_group_rule_id.clone()).collect();
            let descriptions = given.iter().map(|rule| rule.description.clone()).collect();
            (Chosen::Ids(rules_of(&group, &ids, egress)?), descriptions)
        }
        _ => {
            let what = "The parameters IpPermissions and SecurityGroupRuleDescriptions cannot be used together.";
            return Err(combination(what));
        }
    };
    check_dry_run(input.dry_run)?;
    let groups = context.cloud.security_groups();
    super::report(groups.describe_rules(&group.meta.id.to_string(), &chosen, &descriptions)?);
    Ok(json!({"Return": true}))
}
