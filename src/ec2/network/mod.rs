//! Addresses, and how instances are reached by them: EC2's rules for them, pure.

mod address;
mod permission;
mod published;
mod range;
mod zone;

use std::str::FromStr;

use super::Ec2Error;
pub use address::{mac_address, private_dns_name, private_host_name};
pub use permission::{Ipv4Range, MAX_GROUPS, MAX_RULES, Peer, Rule, Traffic, check_group_name};
pub use published::{Protocol, PublishedPort};
pub use range::{DEFAULT_VPC, SubnetRange, check_subnet_range, check_vpc_range};
pub use zone::{REGION, Zone};

/// The domain of private names in that region.
pub const DOMAIN: &str = "ec2.internal";

/// What an instance's network interface is connected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Its VPC where the host can have one; else a user-mode network where it has that; else only what the monitor answers
    /// by itself.
    #[default]
    Auto,
    /// A user-mode network, or it is not started.
    User,
    /// Its VPC, in which instances reach each other, or it is not started.
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
