//! Rules of security groups (EC2 API Reference, `IpPermission`; Amazon EC2 User Guide, "Security group rules").

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
}

impl Rule {
    pub fn is_like(&self, egress: bool, traffic: Traffic, peer: Peer) -> bool {
        (self.egress, self.traffic, self.peer) == (egress, traffic, peer)
    }
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
    fn invalid_group_name_is_refused() {
        assert_eq!(check_group_name("web servers (blue)"), Ok(()));
        assert_eq!(check_group_name("default").unwrap_err().code(), ErrorCode::InvalidGroupReserved);
        for name in ["", "sg-1", "a\nb", "ä", &"x".repeat(256)] {
            assert_eq!(check_group_name(name).unwrap_err().code(), ErrorCode::InvalidParameterValue, "{name}");
        }
    }
}
