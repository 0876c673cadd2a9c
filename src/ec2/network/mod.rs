//! Addresses, and how instances are reached by them: EC2's rules for them, pure.

mod address;
mod permission;
mod published;

use std::str::FromStr;

use super::Ec2Error;
pub use address::{DEFAULT_SUBNET, DEFAULT_VPC, Subnet, mac_address, private_dns_name, private_host_name};
pub use permission::{Ipv4Range, MAX_GROUPS, MAX_RULES, Peer, Rule, Traffic, check_group_name};
pub use published::{Protocol, PublishedPort};

/// The region that instances are in, and their availability zone: labels here.
pub const REGION: &str = "us-east-1";
/// The zone of the default subnet, by its name and by its id.
pub const ZONE: &str = "us-east-1a";
/// The id of that zone.
pub const ZONE_ID: &str = "use1-az1";
/// The domain of private names in that region.
pub const DOMAIN: &str = "ec2.internal";

/// What an instance's network interface is connected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// A user-mode network where the host has one, and else only what the monitor answers by itself.
    #[default]
    Auto,
    /// A user-mode network, or it is not started.
    User,
    /// The default VPC, in which instances reach each other, or it is not started.
    Vpc,
    /// Nothing but what the monitor answers by itself: metadata, and published ports.
    None,
}

impl FromStr for NetworkMode {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<NetworkMode, Ec2Error> {
        match text {
            "auto" => Ok(NetworkMode::Auto),
            "user" => Ok(NetworkMode::User),
            "vpc" => Ok(NetworkMode::Vpc),
            "none" => Ok(NetworkMode::None),
            _ => Err(Ec2Error::InvalidParameterValue {
                parameter: "network",
                given: text.to_string(),
                rule: "it is auto, vpc, user or none.".into(),
            }),
        }
    }
}
