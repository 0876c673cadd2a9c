//! Rules of security groups in requests.

use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::Value;

use super::resource::{id, missing};
use crate::error::ApiError;
use cloud::network::{PeerSpec, RuleSpec};
use ec2::api::ACCOUNT_ID;
use ec2::id::SecurityGroup;
use ec2::network::{Traffic, parse_range};
use ec2::{Ec2Error, ErrorCode};

/// EC2 API Reference, `IpPermission`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpPermission {
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    ip_ranges: Vec<IpRange>,
    user_id_group_pairs: Vec<UserIdGroupPair>,
    /// Peers that no rule in Wisp has.
    ipv6_ranges: Vec<Value>,
    prefix_list_ids: Vec<Value>,
}

/// EC2 API Reference, `IpRange`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct IpRange {
    cidr_ip: String,
    description: Option<String>,
}

/// EC2 API Reference, `UserIdGroupPair`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct UserIdGroupPair {
    group_id: Option<String>,
    group_name: Option<String>,
    user_id: Option<String>,
    description: Option<String>,
}

impl IpPermission {
    /// Returns the permission of a request without `IpPermissions`, whose members are the rule. `source` is the name of
    /// a group and its owner.
    pub fn flat(
        ip_protocol: Option<String>,
        (from_port, to_port): (Option<i32>, Option<i32>),
        cidr_ip: Option<String>,
        (source, owner): (Option<String>, Option<String>),
    ) -> Option<IpPermission> {
        let is_given =
            ip_protocol.is_some() || from_port.or(to_port).is_some() || cidr_ip.is_some() || source.is_some();
        // EC2 allows all traffic of a group if the request has no protocol.
        let ip_protocol = ip_protocol.or_else(|| source.as_ref().map(|_| "-1".to_string()));
        let pair =
            source.map(|name| UserIdGroupPair { group_name: Some(name), user_id: owner, ..UserIdGroupPair::default() });
        is_given.then(|| IpPermission {
            ip_protocol,
            from_port,
            to_port,
            ip_ranges: cidr_ip.into_iter().map(|cidr_ip| IpRange { cidr_ip, description: None }).collect(),
            user_id_group_pairs: pair.into_iter().collect(),
            ..IpPermission::default()
        })
    }

    /// Returns the name of a member with peers that Wisp does not support.
    pub fn unsupported(&self) -> Option<&'static str> {
        match (self.ipv6_ranges.is_empty(), self.prefix_list_ids.is_empty()) {
            (false, _) => Some("Ipv6Ranges"),
            (_, false) => Some("PrefixListIds"),
            _ => None,
        }
    }

    /// Returns a rule for each range and group, of which there must be at least one.
    pub fn specs(&self, egress: bool) -> Result<Vec<RuleSpec>, ApiError> {
        let protocol = self.ip_protocol.as_deref().ok_or_else(|| missing("IpProtocol"))?;
        let traffic = Traffic::from_permission(protocol, self.from_port, self.to_port)?;
        let spec =
            |peer, description: &Option<String>| RuleSpec { egress, traffic, peer, description: description.clone() };
        let mut specs = Vec::new();
        for IpRange { cidr_ip, description } in &self.ip_ranges {
            specs.push(spec(PeerSpec::Range(range("CidrIp", cidr_ip)?), description));
        }
        for pair in &self.user_id_group_pairs {
            specs.push(spec(pair.peer()?, &pair.description));
        }
        if specs.is_empty() {
            return Err(missing("IpRanges or UserIdGroupPairs"));
        }
        Ok(specs)
    }
}

impl UserIdGroupPair {
    fn peer(&self) -> Result<PeerSpec, ApiError> {
        if let Some(other) = self.user_id.as_ref().filter(|user| *user != ACCOUNT_ID) {
            let other: String = other.chars().take(100).collect();
            let what = format!("The account '{other}' has no security groups: the only account is {ACCOUNT_ID}.");
            return Err(Ec2Error::refused(ErrorCode::InvalidGroupNotFound, what, None).into());
        }
        match (&self.group_id, &self.group_name) {
            (Some(given), _) => Ok(PeerSpec::Group(id::<SecurityGroup>(given)?.to_string())),
            // Names of groups never look like IDs.
            (None, Some(name)) => Ok(PeerSpec::Group(name.clone())),
            (None, None) => Err(missing("GroupId")),
        }
    }
}

/// EC2 API Reference, `SecurityGroupRuleRequest`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RuleRequest {
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ipv4: Option<String>,
    referenced_group_id: Option<String>,
    description: Option<String>,
}

impl RuleRequest {
    /// Returns the rule. Its direction is that of the rule that it replaces.
    pub fn spec(&self) -> Result<RuleSpec, ApiError> {
        let protocol = self.ip_protocol.as_deref().ok_or_else(|| missing("IpProtocol"))?;
        let peer = match (&self.cidr_ipv4, &self.referenced_group_id) {
            (Some(text), None) => PeerSpec::Range(range("CidrIpv4", text)?),
            (None, Some(group)) => PeerSpec::Group(id::<SecurityGroup>(group)?.to_string()),
            (None, None) => return Err(missing("CidrIpv4 or ReferencedGroupId")),
            _ => {
                let what = "The parameters CidrIpv4 and ReferencedGroupId cannot be used together.";
                return Err(super::resource::combination(what));
            }
        };
        let traffic = Traffic::from_permission(protocol, self.from_port, self.to_port)?;
        Ok(RuleSpec { egress: false, traffic, peer, description: self.description.clone() })
    }
}

/// Parses an address range, which must have a prefix length.
pub fn range(parameter: &str, text: &str) -> Result<Ipv4Net, Ec2Error> {
    parse_range(text).ok().filter(|_| text.contains('/')).ok_or_else(|| {
        let given: String = text.chars().take(100).collect();
        Ec2Error::invalid_parameter(parameter, given, "it must be an IPv4 address range, such as 10.0.0.0/8.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn specs(permission: serde_json::Value) -> Result<Vec<RuleSpec>, ApiError> {
        serde_json::from_value::<IpPermission>(permission).unwrap().specs(false)
    }

    #[test]
    fn permission_is_a_rule_for_each_peer() {
        let group = "sg-0123456789abcdef0";
        let rules = specs(serde_json::json!({
            "IpProtocol": "tcp", "FromPort": 80, "ToPort": 81,
            "IpRanges": [{"CidrIp": "10.1.2.3/8", "Description": "office"}, {"CidrIp": "192.168.0.0/16"}],
            "UserIdGroupPairs": [{"GroupId": group, "UserId": ACCOUNT_ID}],
        }))
        .unwrap();
        let peers: Vec<&PeerSpec> = rules.iter().map(|rule| &rule.peer).collect();
        let ranges = ["10.0.0.0/8", "192.168.0.0/16"].map(|range| PeerSpec::Range(range.parse().unwrap()));
        assert_eq!(peers, [&ranges[0], &ranges[1], &PeerSpec::Group(group.into())]);
        assert!(rules.iter().all(|rule| rule.traffic == Traffic::Tcp { from: 80, to: 81 } && !rule.egress));
        assert_eq!(rules[0].description.as_deref(), Some("office"));
    }

    #[test]
    fn incomplete_and_foreign_peers_are_refused() {
        let with = |peers: serde_json::Value| {
            let mut permission = serde_json::json!({"IpProtocol": "-1"});
            permission.as_object_mut().unwrap().extend(peers.as_object().unwrap().clone());
            specs(permission).unwrap_err().code
        };
        assert_eq!(with(serde_json::json!({})), Code::Ec2(ErrorCode::MissingParameter));
        for (range, code) in [("10.0.0.0", ErrorCode::InvalidParameterValue), ("x/8", ErrorCode::InvalidParameterValue)]
        {
            assert_eq!(with(serde_json::json!({"IpRanges": [{"CidrIp": range}]})), Code::Ec2(code));
        }
        let foreign = serde_json::json!({"UserIdGroupPairs": [{"GroupName": "web", "UserId": "111111111111"}]});
        assert_eq!(with(foreign), Code::Ec2(ErrorCode::InvalidGroupNotFound));
        let malformed = serde_json::json!({"UserIdGroupPairs": [{"GroupId": "web"}]});
        assert_eq!(with(malformed), Code::Ec2(ErrorCode::InvalidGroupIdMalformed));
    }

    #[test]
    fn flat_form_with_group_only_is_all_traffic() {
        let source = (Some("web".to_string()), None);
        let rules = IpPermission::flat(None, (None, None), None, source).unwrap().specs(false).unwrap();
        assert_eq!((rules[0].traffic, &rules[0].peer), (Traffic::All, &PeerSpec::Group("web".into())));
        assert!(IpPermission::flat(None, (None, None), None, (None, None)).is_none());
    }
}
