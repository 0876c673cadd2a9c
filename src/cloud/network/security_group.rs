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
use ec2::network::{ANYWHERE, MAX_GROUPS, MAX_RULES, Peer, Rule, Traffic, check_description, check_group_name};
use ec2::state::InstanceState;
use ec2::{Ec2Error, ErrorCode};
use ipnet::Ipv4Net;
use node::shell;
use store::{InstanceRecord, Meta, SecurityGroupRecord, Transaction};

pub const DEFAULT: &str = "default";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    pub egress: bool,
    pub traffic: Traffic,
    pub peer: PeerSpec,
    pub description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerSpec {
    Range(Ipv4Net),
    /// Name or ID of the group whose members are peers.
    Group(String),
}

/// The rules of a group that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    Ids(Vec<SecurityGroupRuleId>),
    /// Rules with the same direction, traffic and peer.
    Like(Vec<RuleSpec>),
}

/// A group after a change, and the rules that were added, removed or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleChange {
    pub group: SecurityGroupRecord,
    pub rules: Vec<Rule>,
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
    pub fn create(
        &self,
        name: &str,
        description: &str,
        vpc: Option<&str>,
        tags: BTreeMap<String, String>,
    ) -> Result<SecurityGroupRecord, CloudError> {
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
            record.meta.tags.clone_from(&tags);
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
            let is_member = |instance: &&InstanceRecord| {
                instance.status.state != InstanceState::Terminated && groups_of(instance).contains(&record.meta.id)
            };
            let member = instances.iter().find(is_member);
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
    pub fn authorize(
        &self,
        reference: &str,
        specs: &[RuleSpec],
        tags: &BTreeMap<String, String>,
    ) -> Result<Outcome<RuleChange>, CloudError> {
        self.change(reference, |tx, group| {
            let mut added: Vec<Rule> = Vec::new();
            for spec in specs {
                let rule = Rule { tags: tags.clone(), ..rule_of(tx, group.spec.vpc_id, spec)? };
                let is_like = |known: &Rule| known.is_like(rule.egress, rule.traffic, rule.peer);
                if group.spec.rules.iter().any(is_like) {
                    return Err(duplicate(&rule));
                }
                if added.iter().any(is_like) {
                    let what = "The same permission must not appear multiple times.";
                    return Err(CloudError::refused(ErrorCode::InvalidParameterValue, what, None));
                }
                added.push(rule);
            }
            group.spec.rules.extend(added.iter().cloned());
            check_count(&group.spec.rules)?;
            Ok(added)
        })
    }

    /// Removes rules from a group. Fails without removing any if one of them does not exist.
    pub fn revoke(&self, reference: &str, chosen: &Chosen) -> Result<Outcome<RuleChange>, CloudError> {
        self.change(reference, |tx, group| {
            let ids = ids_of(tx, reference, group, chosen)?;
            Ok(group.spec.rules.extract_if(.., |rule| ids.contains(&rule.id)).collect())
        })
    }

    /// Replaces rules, which keep their IDs, directions and tags. Fails if two rules would be the same.
    pub fn modify_rules(
        &self,
        reference: &str,
        changes: &[(SecurityGroupRuleId, RuleSpec)],
    ) -> Result<Outcome<RuleChange>, CloudError> {
        self.change(reference, |tx, group| {
            let mut changed = Vec::new();
            for (id, spec) in changes {
                let vpc = group.spec.vpc_id;
                let rule = rule_with(&mut group.spec.rules, *id)?;
                let new = rule_of(tx, vpc, spec)?;
                *rule = Rule { id: *id, egress: rule.egress, tags: std::mem::take(&mut rule.tags), ..new };
                changed.push(rule.clone());
            }
            let is_like =
                |one: &Rule, other: &Rule| one.id != other.id && one.is_like(other.egress, other.traffic, other.peer);
            match changed.iter().find(|rule| group.spec.rules.iter().any(|other| is_like(other, rule))) {
                Some(rule) => Err(duplicate(rule)),
                None => Ok(changed),
            }
        })
    }

    /// Sets or removes the descriptions of rules. `descriptions` has one for each chosen rule, in their order.
    pub fn describe_rules(
        &self,
        reference: &str,
        chosen: &Chosen,
        descriptions: &[Option<String>],
    ) -> Result<Outcome<RuleChange>, CloudError> {
        self.change(reference, |tx, group| {
            let mut changed = Vec::new();
            for (id, description) in ids_of(tx, reference, group, chosen)?.into_iter().zip(descriptions) {
                let rule = rule_with(&mut group.spec.rules, id)?;
                rule.description.clone_from(description);
                changed.push(rule.clone());
            }
            Ok(changed)
        })
    }

    /// Changes the rules of a group in one transaction, and then the filters of running instances.
    fn change(
        &self,
        reference: &str,
        change: impl Fn(&Transaction, &mut SecurityGroupRecord) -> Result<Vec<Rule>, CloudError>,
    ) -> Result<Outcome<RuleChange>, CloudError> {
        let (changed, pending) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut group = find_group(tx, reference)?;
            let rules = change(tx, &mut group)?;
            for rule in &rules {
                check_description(rule.description.as_deref().unwrap_or_default())?;
            }
            tx.put(&mut group)?;
            Ok((RuleChange { group, rules }, NetworkChange::begin(tx)?))
        })?;
        let warnings = self.apply()?;
        self.cloud.interfaces().finish(pending)?;
        Ok(Outcome { value: changed, warnings })
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

/// Returns a new rule for a group in a VPC.
fn rule_of(tx: &Transaction, vpc: VpcId, spec: &RuleSpec) -> Result<Rule, CloudError> {
    let peer = match &spec.peer {
        PeerSpec::Range(range) => Peer::Range(*range),
        PeerSpec::Group(reference) => Peer::Group(group_in(tx, vpc, reference)?.meta.id),
    };
    Ok(Rule { description: spec.description.clone(), ..rule(spec.egress, spec.traffic, peer) })
}

fn rule_with(rules: &mut [Rule], id: SecurityGroupRuleId) -> Result<&mut Rule, CloudError> {
    let rule = rules.iter_mut().find(|rule| rule.id == id);
    rule.ok_or_else(|| SecurityGroupRuleId::not_found(&id.to_string()).into())
}

/// Returns the IDs of the chosen rules, all of which exist.
fn ids_of(
    tx: &Transaction,
    reference: &str,
    group: &SecurityGroupRecord,
    chosen: &Chosen,
) -> Result<Vec<SecurityGroupRuleId>, CloudError> {
    let rules = &group.spec.rules;
    match chosen {
        Chosen::Ids(ids) => match ids.iter().find(|id| rules.iter().all(|rule| rule.id != **id)) {
            Some(unknown) => Err(SecurityGroupRuleId::not_found(&unknown.to_string()).into()),
            None => Ok(ids.clone()),
        },
        Chosen::Like(specs) => {
            let find = |spec: &RuleSpec| {
                let Rule { egress, traffic, peer, .. } = rule_of(tx, group.spec.vpc_id, spec)?;
                let found = rules.iter().find(|rule| rule.is_like(egress, traffic, peer)).map(|rule| rule.id);
                found.ok_or_else(|| {
                    CloudError::refused(
                        ErrorCode::InvalidPermissionNotFound,
                        "The specified rule does not exist in this security group.",
                        Some(format!("`wisp {}` lists its rules.", shell::command(["sg", "show", reference]))),
                    )
                })
            };
            specs.iter().map(find).collect()
        }
    }
}

fn duplicate(rule: &Rule) -> CloudError {
    CloudError::refused(
        ErrorCode::InvalidPermissionDuplicate,
        format!("the specified rule \"peer: {}, {}\" already exists", shown(rule.peer), rule.traffic),
        None,
    )
}

/// Checks the number of rules of each direction.
fn check_count(rules: &[Rule]) -> Result<(), CloudError> {
    if [false, true].iter().all(|egress| rules.iter().filter(|rule| rule.egress == *egress).count() <= MAX_RULES) {
        return Ok(());
    }
    Err(CloudError::refused(
        ErrorCode::RulesPerSecurityGroupLimitExceeded,
        format!("The maximum number of rules per security group has been reached: {MAX_RULES} per direction."),
        None,
    ))
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
    Rule { id: new_id(), egress, traffic, peer, description: None, tags: BTreeMap::new() }
}

/// Formats a peer as on the command line.
pub fn shown(peer: Peer) -> String {
    match peer {
        Peer::Range(range) => range.to_string(),
        Peer::Group(id) => id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::home::Home;

    fn cloud() -> (tempfile::TempDir, Cloud) {
        let directory = tempfile::tempdir().unwrap();
        let cloud = Cloud::at(Home::at(directory.path()).unwrap()).unwrap();
        (directory, cloud)
    }

    fn member(group: &SecurityGroupRecord, state: &str) -> InstanceRecord {
        let record = serde_json::json!({
            "meta": {"id": "i-0123456789abcdef0", "created": 1, "generation": 0},
            "spec": {
                "image_id": "ami-0123456789abcdef0", "key_name": null, "user_data": null, "shutdown_behavior": "stop",
                "termination_protection": false,
                "size": {"instance_type": "t3.nano", "vcpus": 1, "threads_per_core": 1, "memory_mib": 192},
            },
            "status": {
                "launch": {"reservation_id": "r-0123456789abcdef0", "launch_index": 0, "image_name": "none"},
                "state": state, "state_reason": null, "launch_time": 1, "terminated": null, "block_devices": [],
                "network": {
                    "vpc_id": group.spec.vpc_id, "subnet_id": "subnet-0123456789abcdef0", "zone": "us-east-1a",
                    "private_ip": "172.31.0.4", "wants_public_ip": false, "security_groups": [group.meta.id],
                },
            },
        });
        serde_json::from_value(record).unwrap()
    }

    fn tcp(port: u16) -> RuleSpec {
        let traffic = Traffic::Tcp { from: port, to: port };
        RuleSpec { egress: false, traffic, peer: PeerSpec::Range(ANYWHERE), description: None }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, CloudError>) -> ErrorCode {
        match result.unwrap_err() {
            CloudError::Ec2(error) => error.code(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn terminated_member_does_not_keep_group() {
        let (_directory, cloud) = cloud();
        for (state, is_kept) in [("stopped", true), ("terminated", false)] {
            let group = cloud.security_groups().create(state, "", None, BTreeMap::new()).unwrap();
            let mut instance = member(&group, state);
            cloud.store.write::<_, CloudError>(|tx| Ok(tx.insert(&mut instance)?)).unwrap();
            assert_eq!(cloud.security_groups().delete(state).is_err(), is_kept, "{state}");
            let id = instance.meta.id.to_string();
            cloud.store.write::<_, CloudError>(|tx| Ok(tx.remove::<InstanceRecord>(&id)?)).unwrap();
        }
    }

    #[test]
    fn failed_change_changes_no_rule() {
        let (_directory, cloud) = cloud();
        let groups = cloud.security_groups();
        groups.create("web", "", None, BTreeMap::new()).unwrap();
        let added = groups.authorize("web", &[tcp(22), tcp(80)], &BTreeMap::new()).unwrap();
        let ids: Vec<SecurityGroupRuleId> = added.value.rules.iter().map(|rule| rule.id).collect();
        let both_to = |port| [(ids[0], tcp(443)), (ids[1], tcp(port))];
        let twice = [tcp(1), tcp(1)];
        assert_eq!(
            code(groups.authorize("web", &[tcp(1), tcp(80)], &BTreeMap::new())),
            ErrorCode::InvalidPermissionDuplicate
        );
        assert_eq!(code(groups.authorize("web", &twice, &BTreeMap::new())), ErrorCode::InvalidParameterValue);
        assert_eq!(code(groups.modify_rules("web", &both_to(443))), ErrorCode::InvalidPermissionDuplicate);
        let control = RuleSpec { description: Some("a\nb".into()), ..tcp(1) };
        assert_eq!(code(groups.authorize("web", &[control], &BTreeMap::new())), ErrorCode::InvalidParameterValue);
        assert_eq!(groups.find("web").unwrap(), added.value.group);
        // Rules may exchange their traffic with each other.
        let exchanged = groups.modify_rules("web", &[(ids[0], tcp(80)), (ids[1], tcp(22))]).unwrap();
        assert_eq!(exchanged.value.rules.iter().map(|rule| rule.id).collect::<Vec<_>>(), ids);
    }
}
