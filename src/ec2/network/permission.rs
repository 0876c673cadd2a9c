//! Rules of security groups (EC2 API Reference, `IpPermission`; Amazon EC2 User Guide, "Security group rules").

use std::collections::BTreeMap;
use std::fmt;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{Ec2Error, ErrorCode};
use crate::id::{SecurityGroupId, SecurityGroupRuleId};

/// Maximum number of rules per security group and direction.
pub const MAX_RULES: usize = 60;
/// Maximum number of security groups per network interface.
pub const MAX_GROUPS: usize = 5;

/// The traffic that a rule matches: a protocol with its ports or type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "kebab-case")]
pub enum Traffic {
    /// `-1` in EC2's API.
    All,
    Tcp {
        from: u16,
        /// Inclusive.
        to: u16,
    },
    Udp {
        from: u16,
        /// Inclusive.
        to: u16,
    },
    Icmp {
        /// None matches any type.
        kind: Option<u8>,
        /// None matches any code.
        code: Option<u8>,
    },
    Other {
        /// IANA protocol number.
        number: u8,
    },
}

impl Traffic {
    /// Parses command-line values: a protocol, and ports or an ICMP type. The default is TCP if ports are given,
    /// otherwise all.
    pub fn parse(protocol: Option<&str>, ports: Option<&str>) -> Result<Traffic, Ec2Error> {
        let refused = |given: &str, rule: &str| {
            Err(Ec2Error::refused(
                ErrorCode::InvalidPermissionMalformed,
                format!("Invalid value '{given}': {rule}"),
                Some("For example: `--protocol tcp --port 80`, `--protocol icmp` or `--protocol all`.".into()),
            ))
        };
        let name = protocol.unwrap_or(if ports.is_some() { "tcp" } else { "all" }).to_ascii_lowercase();
        match (name.as_str(), ports) {
            ("all" | "-1", None) => Ok(Traffic::All),
            ("tcp" | "6" | "udp" | "17", _) => {
                let Some((from, to)) = parse_ports(ports.unwrap_or("all")) else {
                    return refused(
                        ports.unwrap_or_default(),
                        "the port must be a number, a range such as 8000-8100, or all.",
                    );
                };
                let is_tcp = matches!(name.as_str(), "tcp" | "6");
                Ok(if is_tcp { Traffic::Tcp { from, to } } else { Traffic::Udp { from, to } })
            }
            ("icmp" | "1", None | Some("all" | "-1")) => Ok(Traffic::Icmp { kind: None, code: None }),
            ("icmp" | "1", Some(kind)) => match kind.parse() {
                Ok(kind) => Ok(Traffic::Icmp { kind: Some(kind), code: None }),
                Err(_) => refused(kind, "for ICMP, it must be a type from 0 to 255, or all."),
            },
            (_, None) => match name.parse() {
                Ok(number) => Ok(Traffic::Other { number }),
                Err(_) => refused(&name, "the protocol must be tcp, udp, icmp, all, or a number from 0 to 255."),
            },
            (_, Some(ports)) => refused(ports, "only tcp, udp and icmp have ports or types."),
        }
    }

    /// Returns the traffic of an `IpPermission` in EC2's API: a protocol, and ports or an ICMP type and code.
    pub fn from_permission(protocol: &str, from: Option<i32>, to: Option<i32>) -> Result<Traffic, Ec2Error> {
        let refused = |given: String, rule: &str| Err(Ec2Error::invalid_parameter("portRange", given, rule));
        let shown = |port: Option<i32>| port.map_or_else(|| "none".to_string(), |port| port.to_string());
        let given = || format!("{} to {}", shown(from), shown(to));
        let name = protocol.to_ascii_lowercase();
        match name.as_str() {
            "-1" | "all" => Ok(Traffic::All),
            "tcp" | "6" | "udp" | "17" => {
                let port = |port: Option<i32>| port.and_then(|port| u16::try_from(port).ok());
                let (Some(from), Some(to)) = (port(from), port(to)) else {
                    return refused(given(), "TCP and UDP must have both ports, from 0 to 65535.");
                };
                if from > to {
                    return refused(given(), "the first port must not exceed the last one.");
                }
                let is_tcp = matches!(name.as_str(), "tcp" | "6");
                Ok(if is_tcp { Traffic::Tcp { from, to } } else { Traffic::Udp { from, to } })
            }
            "icmp" | "1" => match (or_any(from), or_any(to)) {
                (Some(kind), Some(code)) if kind.is_some() || code.is_none() => Ok(Traffic::Icmp { kind, code }),
                _ => refused(given(), "ICMP must have a type and a code from 0 to 255, or -1 for any."),
            },
            _ => name.parse().map(|number| Traffic::Other { number }).map_err(|_| {
                let rule = "it must be tcp, udp, icmp, -1, or a number from 0 to 255.";
                Ec2Error::invalid_parameter("IpProtocol", protocol.chars().take(100).collect::<String>(), rule)
            }),
        }
    }

    /// `IpProtocol` in EC2's API.
    pub fn protocol(self) -> String {
        match self {
            Traffic::All => "-1".into(),
            Traffic::Tcp { .. } => "tcp".into(),
            Traffic::Udp { .. } => "udp".into(),
            Traffic::Icmp { .. } => "icmp".into(),
            Traffic::Other { number } => number.to_string(),
        }
    }

    /// `FromPort` and `ToPort`: ports, or ICMP type and code, with -1 for any. None for other protocols.
    pub fn ports(self) -> Option<(i32, i32)> {
        let or_all = |value: Option<u8>| value.map_or(-1, i32::from);
        match self {
            Traffic::Tcp { from, to } | Traffic::Udp { from, to } => Some((from.into(), to.into())),
            Traffic::Icmp { kind, code } => Some((or_all(kind), or_all(code))),
            Traffic::All | Traffic::Other { .. } => None,
        }
    }
}

/// Formats for display: `tcp 80`, `udp 8000-8100`, `icmp`, `all`.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Traffic::All => write!(f, "all"),
            Traffic::Tcp { from, to } | Traffic::Udp { from, to } => {
                let name = self.protocol();
                match (from, to) {
                    (0, u16::MAX) => write!(f, "{name}"),
                    _ if from == to => write!(f, "{name} {from}"),
                    _ => write!(f, "{name} {from}-{to}"),
                }
            }
            Traffic::Icmp { kind: Some(kind), .. } => write!(f, "icmp type {kind}"),
            Traffic::Icmp { .. } => write!(f, "icmp"),
            Traffic::Other { number } => write!(f, "protocol {number}"),
        }
    }
}

/// Returns an ICMP type or code: `Some(None)` for any, and `None` for an invalid one.
fn or_any(number: Option<i32>) -> Option<Option<u8>> {
    match number {
        None | Some(-1) => Some(None),
        Some(number) => u8::try_from(number).ok().map(Some),
    }
}

fn parse_ports(text: &str) -> Option<(u16, u16)> {
    if text == "all" {
        return Some((0, u16::MAX));
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range = (from.parse().ok()?, to.parse().ok()?);
    (range.0 <= range.1).then_some(range)
}

/// The remote end of the traffic: addresses, or the members of a security group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    Range(Ipv4Net),
    Group(SecurityGroupId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub id: SecurityGroupRuleId,
    /// True for outbound traffic of the group's members, false for inbound traffic.
    pub egress: bool,
    #[serde(flatten)]
    pub traffic: Traffic,
    pub peer: Peer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

impl Rule {
    pub fn is_like(&self, egress: bool, traffic: Traffic, peer: Peer) -> bool {
        (self.egress, self.traffic, self.peer) == (egress, traffic, peer)
    }
}

/// Checks the description of a security group or of a rule.
pub fn check_description(text: &str) -> Result<(), Ec2Error> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    if text.len() <= 255 && text.chars().all(is_allowed) {
        return Ok(());
    }
    let rule = "it must have at most 255 characters (a-z, A-Z, 0-9, spaces and ._-:/()#,@[]+=&;{}!$*).";
    Err(Ec2Error::invalid_parameter("Description", text.chars().take(300).collect::<String>(), rule))
}

pub fn check_group_name(name: &str) -> Result<(), Ec2Error> {
    let refused = |code, what: String| Err(Ec2Error::refused(code, what, None));
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    if name == "default" {
        return refused(ErrorCode::InvalidGroupReserved, "Cannot use reserved security group name: default.".into());
    }
    if name.is_empty() || name.len() > 255 || name.starts_with("sg-") || !name.chars().all(is_allowed) {
        let rule =
            "have 1 to 255 characters (a-z, A-Z, 0-9, spaces and ._-:/()#,@[]+=&;{}!$*) and must not start with sg-.";
        let what = format!("Invalid value '{name}' for groupName: it must {rule}");
        return refused(ErrorCode::InvalidParameterValue, what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_parsed_from_command_line_values() {
        let traffic = |protocol, ports| Traffic::parse(protocol, ports).unwrap();
        assert_eq!(traffic(None, Some("22")), Traffic::Tcp { from: 22, to: 22 });
        assert_eq!(traffic(Some("udp"), Some("8000-8100")), Traffic::Udp { from: 8000, to: 8100 });
        assert_eq!(traffic(Some("tcp"), None), Traffic::Tcp { from: 0, to: 65535 });
        assert_eq!(traffic(Some("icmp"), None), Traffic::Icmp { kind: None, code: None });
        assert_eq!(traffic(Some("icmp"), Some("8")), Traffic::Icmp { kind: Some(8), code: None });
        assert_eq!(traffic(Some("-1"), None), Traffic::All);
        assert_eq!(traffic(Some("50"), None), Traffic::Other { number: 50 });
        assert_eq!(traffic(None, Some("80")).to_string(), "tcp 80");
        assert_eq!((Traffic::All.protocol().as_str(), Traffic::All.ports()), ("-1", None));
    }

    #[test]
    fn invalid_traffic_is_refused() {
        for (protocol, ports) in [
            (None, Some("x")),
            (Some("tcp"), Some("90-80")),
            (Some("tcp"), Some("70000")),
            (Some("sctp"), None),
            (Some("all"), Some("80")),
            (Some("300"), None),
            (Some("icmp"), Some("999")),
        ] {
            let error = Traffic::parse(protocol, ports).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidPermissionMalformed, "{protocol:?} {ports:?}");
        }
    }

    #[test]
    fn permission_of_api_is_checked() {
        let traffic = |protocol, from, to| Traffic::from_permission(protocol, from, to);
        assert_eq!(traffic("tcp", Some(22), Some(23)), Ok(Traffic::Tcp { from: 22, to: 23 }));
        assert_eq!(traffic("17", Some(0), Some(65535)), Ok(Traffic::Udp { from: 0, to: 65535 }));
        assert_eq!(traffic("icmp", Some(-1), Some(-1)), Ok(Traffic::Icmp { kind: None, code: None }));
        assert_eq!(traffic("icmp", Some(3), Some(4)), Ok(Traffic::Icmp { kind: Some(3), code: Some(4) }));
        assert_eq!(traffic("-1", Some(22), Some(22)), Ok(Traffic::All));
        assert_eq!(traffic("50", None, None), Ok(Traffic::Other { number: 50 }));
        for (protocol, from, to) in [
            ("tcp", Some(22), None),
            ("tcp", Some(-1), Some(-1)),
            ("udp", Some(2), Some(1)),
            ("tcp", Some(0), Some(65536)),
            ("icmp", Some(-1), Some(3)),
            ("icmp", Some(256), Some(-1)),
            ("icmpv6", None, None),
            ("300", None, None),
        ] {
            let error = traffic(protocol, from, to).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue, "{protocol} {from:?} {to:?}");
        }
    }

    #[test]
    fn invalid_description_is_refused() {
        assert_eq!(check_description("SSH from the office (10.0.0.0/8)"), Ok(()));
        for text in ["a\nb", "ä", &"x".repeat(256)] {
            assert_eq!(check_description(text).unwrap_err().code(), ErrorCode::InvalidParameterValue, "{text}");
        }
    }

    #[test]
    fn invalid_group_name_is_refused() {
        assert_eq!(check_group_name("web servers (blue)"), Ok(()));
        assert_eq!(check_group_name("default").unwrap_err().code(), ErrorCode::InvalidGroupReserved);
        for name in ["", "sg-1", "a\nb", "ä", &"x".repeat(256)] {
            assert_eq!(check_group_name(name).unwrap_err().code(), ErrorCode::InvalidParameterValue, "{name}");
        }
    }
}
