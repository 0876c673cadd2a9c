//! The network of an instance as requested at launch.

use std::net::Ipv4Addr;

use ec2::metadata::MetadataChange;
use ec2::network::{NetworkMode, PublishedPort, Zone};
pub use node::machine_config::MTU;
use store::NetworkRecord;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    pub mode: NetworkMode,
    /// ID or name of the subnet. The default is a subnet of the default VPC.
    pub subnet: Option<String>,
    pub zone: Option<Zone>,
    /// Requested private address, which must be in the subnet. The default is a free one.
    pub private_ip: Option<Ipv4Addr>,
    /// True to request a public address. The default is the subnet's setting.
    pub public_ip: Option<bool>,
    /// Host ports that are forwarded to the instance.
    pub published: Vec<PublishedPort>,
    /// Names or IDs of the groups. The default is the VPC's default group.
    pub security_groups: Vec<String>,
    /// Changes to the metadata service's default options.
    pub metadata: Option<MetadataChange>,
}

pub(crate) fn is_in_vpc(network: &NetworkRecord) -> bool {
    network.mode == NetworkMode::Vpc
}
