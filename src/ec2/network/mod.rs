//! EC2's rules for addresses, subnets and security groups, as pure code.

mod address;
mod permission;
mod published;
mod range;
mod zone;

use std::str::FromStr;

use super::Ec2Error;
pub use address::{mac_address, private_dns_name, private_host_name};
pub use permission::{MAX_GROUPS, MAX_RULES, Peer, Rule, Traffic, check_description, check_group_name};
pub use published::{Protocol, PublishedPort};
pub use range::{ANYWHERE, DEFAULT_VPC, SubnetRange, check_subnet_range, check_vpc_range, parse_range};
pub use zone::{REGION, Zone};

pub const DOMAIN: &str = "ec2.internal";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The VPC if the host supports it, otherwise a user-mode network, otherwise [`NetworkMode::None`].
    #[default]
    Auto,
    /// A user-mode network. If the host cannot provide it, the start fails.
    User,
    /// The VPC, where instances can reach each other. If the host cannot provide it, the start fails.
    Vpc,
    /// No network except the VMM's metadata service and published ports.
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
            _ => Err(Ec2Error::invalid_parameter("network", text, "it must be auto, vpc, user or none.")),
        }
    }
}
