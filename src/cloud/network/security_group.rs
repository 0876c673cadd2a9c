//! `CreateSecurityGroup`, `AuthorizeSecurityGroupIngress` and the like: stateful firewall rules.
//!
//! A change takes effect on running instances at once. Established connections stay open.

use std::collections::BTreeMap;

use super::super::error::CloudError;
use super::super::{Cloud, Outcome, Warnings, new_id, now, resolve};
use super::filter::groups_of;
use super::lookup::{default_vpc, depends, vpc_or_default};
use super::pending::NetworkChange;
use ec2::id::{SecurityGroupId, SecurityGroupRuleId, VpcId};
use ec2::network::{ANYWHERE, MAX_GROUPS, MAX_RULES, Peer, Rule, Traffic, check_group_name};
use ec2::{Ec2Error, ErrorCode};
use ipnet::Ipv4Net;
use node::shell;
use store::{InstanceRecord, Meta, SecurityGroupRecord, Transaction};

pub const DEFAULT: &str = "default";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    pub egress: bool,
    pub traffic: Traffic,
    pub ranges: Vec<Ipv4Net>,
    /// Names or IDs of the groups whose members are peers.
    pub groups: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct SecurityGroups<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl SecurityGroups<'_> {
    /// Lists all groups, or those of one VPC. Creates the default VPC's default group if it is missing.
    pub fn list(&self, vpc: Option<&str>) -> Result<Vec<SecurityGroupRecord>, CloudError> {
        self.cloud.store.write(|tx| {
            let vpc = vpc.map(|reference| resolve::vpc(tx, reference)).transpose()?.map(|vpc| vpc.meta.id);
            ensure_default_group(tx)?;
            let mut groups: Vec<SecurityGroupRecord> = tx.list()?;
            groups.retain(|group| vpc.is_none_or(|vpc| vpc == group.spec.vpc_id));
            groups.sort_by(|a, b| (&a.spec.name, a.spec.vpc_id).cmp(&(&b.spec.name, b.spec.vpc_id)));
            Ok(groups)
        })
    }

    pub fn names(&self) -> Result<BTreeMap<SecurityGroupId, String>, CloudError> {
        let groups: Vec<SecurityGroupRecord> = self.cloud.records()?;
        Ok(groups.into_iter().map(|group| (group.meta.id, group.spec.name)).collect())
    }

    pub fn find(&self, reference: &str) -> Result<SecurityGroupRecord, CloudError> {
        self.cloud.store.write(|tx| find_group(tx, reference))
    }

    /// Creates a group, by default in the default VPC. It allows all outbound and no inbound traffic.
    pub fn create(&self, name: &str, description: &str, vpc: Option<&str>) -> Result<SecurityGroupRecord, CloudError> {
        check_group_name(name)?;
        self.cloud.store.write(|tx| {
            let vpc_id = vpc_or_default(tx, vpc)?.meta.id;
            if tx
                .list::<SecurityGroupRecord>()?
                .iter()
                .any(|group| group.spec.name == name && group.spec.vpc_id == vpc_id)
            {
                return Err(CloudError::refused(
                    ErrorCode::InvalidGroupDuplicate,
                    format!("The security group '{name}' already exists for VPC '{vpc_id}'."),
                    Some(format!("`wisp {}` shows it.", shell::command(["sg", "show", name]))),
                ));
            }
            let mut record = new_group(vpc_id, name, description);
            tx.insert(&mut record)?;
            Ok(record)
        })
    }

    /// Deletes a group. Fails if it has members, or if a rule of another group refers to it.
    pub fn delete(&self, reference: &str) -> Result<SecurityGroupRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let record = find_group(tx, reference)?;
            if record.spec.name == DEFAULT {
                let what = "The security group 'default' cannot be deleted by a user.";
                return Err(CloudError::refused(ErrorCode::CannotDelete, what, None));
            }
            let instances: Vec<InstanceRecord> = tx.list()?;
            let member = instances.iter().find(|instance| groups_of(instance).contains(&record.meta.id));
            let groups: Vec<SecurityGroupRecord> = tx.list()?;
            let names_it = |group: &&SecurityGroupRecord| {
                group.meta.id != record.meta.id
                    && group.spec.rules.iter().any(|rule| rule.peer == Peer::Group(record.meta.id))
            };
            let dependent = member.map(|member| member.meta.id.to_string());
            let dependent = dependent.or_else(|| groups.iter().find(names_it).map(|group| group.spec.name.clone()));
            if let Some(dependent) = dependent {
                return Err(depends(&record.meta.id.to_string(), &dependent));
            }
            tx.remove::<SecurityGroupRecord>(&record.meta.id.to_string())?;
            Ok(record)
        })
    }

    /// Adds rules to a group. Fails without adding any if one exists already, or if there are too many.
    pub fn authorize(&self, reference: &str, spec: &RuleSpec) -> Result<Outcome<SecurityGroupRecord>, CloudError> {
        let (record, change) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = find_group(tx, reference)?;
            for peer in peers(tx, record.spec.vpc_id, spec)? {
                if record.spec.rules.iter().any(|rule| rule.is_like(spec.egress, spec.traffic, peer)) {
                    return Err(CloudError::refused(
                        ErrorCode::InvalidPermissionDuplicate,
                        format!("the specified rule \"peer: {}, {}\" already exists", shown(peer), spec.traffic),
                        None,
                    ));
                }
                record.spec.rules.push(rule(spec.egress, spec.traffic, peer));
            }
            if record.spec.rules.iter().filter(|rule| rule.egress == spec.egress).count() > MAX_RULES {
                return Err(CloudError::refused(
                    ErrorCode::RulesPerSecurityGroupLimitExceeded,
                    format!(
                        "The maximum number of rules per security group has been reached: {MAX_RULES} per direction."
                    ),
                    None,
                ));
            }
            tx.put(&mut record)?;
            Ok((record, NetworkChange::begin(tx)?))
        })?;
        let warnings = self.apply()?;
        self.cloud.interfaces().finish(change)?;
        Ok(Outcome { value: record, warnings })
    }

    /// Removes rules from a group. Fails without removing any if one of them does not exist.
    pub fn revoke(&self, reference: &str, spec: &RuleSpec) -> Result<Outcome<SecurityGroupRecord>, CloudError> {
        self.remove_rules(reference, |tx, group| {
            let is_peer = |rule: &&Rule, peer: Peer| rule.is_like(spec.egress, spec.traffic, peer);
            let find = |peer| group.spec.rules.iter().find(|rule| is_peer(rule, peer)).map(|rule| rule.id);
            Ok(peers(tx, group.spec.vpc_id, spec)?.into_iter().map(find).collect())
        })
    }

    pub fn revoke_by_id(
        &self,
        reference: &str,
        id: SecurityGroupRuleId,
    ) -> Result<Outcome<SecurityGroupRecord>, CloudError> {
        self.remove_rules(reference, |_, group| match group.spec.rules.iter().any(|rule| rule.id == id) {
            true => Ok(Some(vec![id])),
            false => Err(SecurityGroupRuleId::not_found(&id.to_string()).into()),
        })
    }

    /// Removes the rules whose IDs `chosen` returns. Fails if it returns `None`: a rule does not exist.
    fn remove_rules(
        &self,
        reference: &str,
        chosen: impl FnOnce(&Transaction, &SecurityGroupRecord) -> Result<Option<Vec<SecurityGroupRuleId>>, CloudError>,
    ) -> Result<Outcome<SecurityGroupRecord>, CloudError> {
        let (record, change) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = find_group(tx, reference)?;
            let Some(ids) = chosen(tx, &record)? else {
                return Err(CloudError::refused(
                    ErrorCode::InvalidPermissionNotFound,
                    "The specified rule does not exist in this security group.",
                    Some(format!("`wisp {}` lists its rules.", shell::command(["sg", "show", reference]))),
                ));
            };
            record.spec.rules.retain(|rule| !ids.contains(&rule.id));
            tx.put(&mut record)?;
            Ok((record, NetworkChange::begin(tx)?))
        })?;
        let warnings = self.apply()?;
        self.cloud.interfaces().finish(change)?;
        Ok(Outcome { value: record, warnings })
    }

    /// Applies the current groups to all running instances, because rules may refer to groups whose members changed.
    pub(crate) fn apply(&self) -> Result<Warnings, CloudError> {
        let instances: Vec<InstanceRecord> = self.cloud.records()?;
        let mut warnings = Warnings::default();
        for record in &instances {
            warnings.extend(self.cloud.interfaces().push(record)?);
        }
        warnings.extend(self.cloud.routers().update()?);
        Ok(warnings)
    }
}

/// Returns or creates a VPC's default group, which allows all traffic between members and all outbound traffic.
pub(super) fn default_group(tx: &Transaction, vpc_id: VpcId) -> Result<SecurityGroupRecord, CloudError> {
    let groups: Vec<SecurityGroupRecord> = tx.list()?;
    if let Some(group) = groups.into_iter().find(|group| group.spec.vpc_id == vpc_id && group.spec.name == DEFAULT) {
        return Ok(group);
    }
    let mut record = new_group(vpc_id, DEFAULT, "default VPC security group");
    record.spec.rules.insert(0, rule(false, Traffic::All, Peer::Group(record.meta.id)));
    tx.insert(&mut record)?;
    Ok(record)
}

/// Returns the IDs of the groups for an instance in a VPC. The default is the VPC's default group.
pub(crate) fn chosen_groups(
    tx: &Transaction,
    vpc: VpcId,
    references: &[String],
) -> Result<Vec<SecurityGroupId>, CloudError> {
    let default = default_group(tx, vpc)?;
    if references.is_empty() {
        return Ok(vec![default.meta.id]);
    }
    let mut ids = Vec::new();
    for reference in references {
        let id = group_in(tx, vpc, reference)?.meta.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.len() > MAX_GROUPS {
        let rule = format!("an instance can be in at most {MAX_GROUPS} groups.");
        return Err(Ec2Error::invalid_parameter("SecurityGroup", references.join(", "), rule).into());
    }
    Ok(ids)
}

/// Creates the default VPC's default group if the VPC exists and the group does not.
fn ensure_default_group(tx: &Transaction) -> Result<(), CloudError> {
    match default_vpc(tx) {
        Ok(vpc) => default_group(tx, vpc.meta.id).map(drop),
        Err(_) => Ok(()),
    }
}

/// Finds a group. A name is looked up in the default VPC first, as in EC2.
fn find_group(tx: &Transaction, reference: &str) -> Result<SecurityGroupRecord, CloudError> {
    ensure_default_group(tx)?;
    let vpc = default_vpc(tx).ok().map(|vpc| vpc.meta.id);
    resolve::security_group(tx, reference, |group| Some(group.spec.vpc_id) == vpc)
        .or_else(|_| resolve::security_group(tx, reference, |_| true))
}

fn group_in(tx: &Transaction, vpc: VpcId, reference: &str) -> Result<SecurityGroupRecord, CloudError> {
    resolve::security_group(tx, reference, |group| group.spec.vpc_id == vpc).map_err(|error| {
        match find_group(tx, reference) {
            Ok(other) => CloudError::refused(
                ErrorCode::InvalidGroupNotFound,
                format!(
                    "The security group '{reference}' ({}) is in another VPC, {}.",
                    other.meta.id, other.spec.vpc_id
                ),
                Some(format!("`wisp sg ls --vpc {vpc}` lists the groups of {vpc}.")),
            ),
            Err(_) => error,
        }
    })
}

fn peers(tx: &Transaction, vpc: VpcId, spec: &RuleSpec) -> Result<Vec<Peer>, CloudError> {
    let mut peers: Vec<Peer> = spec.ranges.iter().copied().map(Peer::Range).collect();
    for group in &spec.groups {
        peers.push(Peer::Group(group_in(tx, vpc, group)?.meta.id));
    }
    Ok(peers)
}

/// Returns a group that allows all outbound and no inbound traffic.
fn new_group(vpc_id: VpcId, name: &str, description: &str) -> SecurityGroupRecord {
    SecurityGroupRecord {
        meta: Meta::new(new_id(), now(), Default::default()),
        spec: store::security_group::Spec {
            vpc_id,
            name: name.into(),
            description: description.into(),
            rules: vec![rule(true, Traffic::All, Peer::Range(ANYWHERE))],
        },
    }
}

fn rule(egress: bool, traffic: Traffic, peer: Peer) -> Rule {
    Rule { id: new_id(), egress, traffic, peer }
}

/// Formats a peer as on the command line.
pub fn shown(peer: Peer) -> String {
    match peer {
        Peer::Range(range) => range.to_string(),
        Peer::Group(id) => id.to_string(),
    }
}
