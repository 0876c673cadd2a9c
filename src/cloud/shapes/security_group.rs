use ec2::api::security_group::{
    IpPermission, IpRange, RevokedSecurityGroupRule, SecurityGroup, SecurityGroupRule, UserIdGroupPair,
};
use ec2::api::{ACCOUNT_ID, Tag, arn};
use ec2::id::SecurityGroupId;
use ec2::network::{Peer, Rule, Traffic};
use store::SecurityGroupRecord;

pub fn security_group(record: &SecurityGroupRecord) -> SecurityGroup {
    SecurityGroup {
        description: record.spec.description.clone(),
        group_id: record.meta.id,
        group_name: record.spec.name.clone(),
        ip_permissions: permissions(record, false),
        ip_permissions_egress: permissions(record, true),
        owner_id: ACCOUNT_ID,
        security_group_arn: arn("security-group", record.meta.id),
        tags: Tag::list(&record.meta.tags),
        vpc_id: record.spec.vpc_id,
    }
}

/// Groups the rules of one direction by traffic, in the order of each traffic's first rule.
fn permissions(record: &SecurityGroupRecord, egress: bool) -> Vec<IpPermission> {
    let mut all: Vec<(Traffic, IpPermission)> = Vec::new();
    for Rule { traffic, peer, description, .. } in record.spec.rules.iter().filter(|rule| rule.egress == egress) {
        let at = all.iter().position(|(known, _)| known == traffic).unwrap_or_else(|| {
            all.push((*traffic, permission(*traffic)));
            all.len() - 1
        });
        let permission = &mut all[at].1;
        match peer {
            Peer::Range(range) => {
                permission.ip_ranges.push(IpRange { cidr_ip: range.to_string(), description: description.clone() });
            }
            Peer::Group(id) => permission.user_id_group_pairs.push(pair(*id, description.clone())),
        }
    }
    all.into_iter().map(|(_, permission)| permission).collect()
}

fn permission(traffic: Traffic) -> IpPermission {
    let (from_port, to_port) = traffic.ports().unzip();
    IpPermission {
        from_port,
        ip_protocol: traffic.protocol(),
        ip_ranges: Vec::new(),
        ipv6_ranges: [],
        prefix_list_ids: [],
        to_port,
        user_id_group_pairs: Vec::new(),
    }
}

fn pair(group_id: SecurityGroupId, description: Option<String>) -> UserIdGroupPair {
    UserIdGroupPair { description, group_id, user_id: ACCOUNT_ID }
}

/// Returns a group's rules as `DescribeSecurityGroupRules` does.
pub fn security_group_rules(record: &SecurityGroupRecord) -> impl Iterator<Item = SecurityGroupRule> {
    record.spec.rules.iter().map(|rule| security_group_rule(record.meta.id, rule))
}

pub fn security_group_rule(group_id: SecurityGroupId, rule: &Rule) -> SecurityGroupRule {
    let (from_port, to_port) = rule.traffic.ports().unwrap_or((-1, -1));
    let (cidr_ipv4, group) = peer(rule);
    SecurityGroupRule {
        cidr_ipv4,
        description: rule.description.clone(),
        from_port,
        group_id,
        group_owner_id: ACCOUNT_ID,
        ip_protocol: rule.traffic.protocol(),
        is_egress: rule.egress,
        referenced_group_info: group.map(|id| pair(id, None)),
        security_group_rule_arn: arn("security-group-rule", rule.id),
        security_group_rule_id: rule.id,
        tags: Tag::list(&rule.tags),
        to_port,
    }
}

/// Returns a removed rule as `RevokeSecurityGroupIngress` does.
pub fn revoked_rule(group_id: SecurityGroupId, rule: &Rule) -> RevokedSecurityGroupRule {
    let (from_port, to_port) = rule.traffic.ports().unwrap_or((-1, -1));
    let (cidr_ipv4, referenced_group_id) = peer(rule);
    RevokedSecurityGroupRule {
        cidr_ipv4,
        description: rule.description.clone(),
        from_port,
        group_id,
        ip_protocol: rule.traffic.protocol(),
        is_egress: rule.egress,
        referenced_group_id,
        security_group_rule_id: rule.id,
        to_port,
    }
}

fn peer(rule: &Rule) -> (Option<String>, Option<SecurityGroupId>) {
    match rule.peer {
        Peer::Range(range) => (Some(range.to_string()), None),
        Peer::Group(id) => (None, Some(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use store::Meta;

    fn rule(number: u8, egress: bool, traffic: Traffic, peer: Peer) -> Rule {
        let id = format!("sgr-0123456789abcdef{number}").parse().unwrap();
        Rule { id, egress, traffic, peer, description: None, tags: Default::default() }
    }

    fn group() -> SecurityGroupRecord {
        let http = Traffic::Tcp { from: 80, to: 81 };
        let id: SecurityGroupId = "sg-0123456789abcdef0".parse().unwrap();
        let range = |text: &str| Peer::Range(text.parse().unwrap());
        SecurityGroupRecord {
            meta: Meta::new(id, 0, Default::default()),
            spec: store::security_group::Spec {
                vpc_id: "vpc-0123456789abcdef0".parse().unwrap(),
                name: "web".into(),
                description: "web servers".into(),
                rules: vec![
                    Rule { description: Some("office".into()), ..rule(0, false, http, range("10.0.0.0/8")) },
                    rule(1, true, Traffic::All, range("0.0.0.0/0")),
                    rule(2, false, http, Peer::Group(id)),
                ],
            },
        }
    }

    #[test]
    fn rules_with_same_traffic_are_one_permission() {
        let shape = serde_json::to_value(security_group(&group())).unwrap();
        let pair = json!({"GroupId": "sg-0123456789abcdef0", "UserId": "000000000000"});
        assert_eq!(
            shape["IpPermissions"],
            json!([{
                "FromPort": 80,
                "IpProtocol": "tcp",
                "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "office"}],
                "Ipv6Ranges": [],
                "PrefixListIds": [],
                "ToPort": 81,
                "UserIdGroupPairs": [pair],
            }])
        );
        assert_eq!(shape["IpPermissionsEgress"][0]["IpProtocol"], "-1");
        assert_eq!(shape["IpPermissionsEgress"][0].get("FromPort"), None);
    }

    #[test]
    fn each_rule_has_its_own_shape() {
        let group = group();
        let rules: Vec<_> = security_group_rules(&group).collect();
        assert_eq!(rules.len(), 3);
        assert_eq!(rules[0].description.as_deref(), Some("office"));
        assert_eq!((rules[1].from_port, rules[1].cidr_ipv4.as_deref()), (-1, Some("0.0.0.0/0")));
        assert_eq!(
            (rules[2].cidr_ipv4.as_deref(), &rules[2].referenced_group_info),
            (None, &Some(pair(group.meta.id, None)))
        );
    }
}
