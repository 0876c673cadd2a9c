//! An instance's network interface, as it is kept with it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::ec2::id::{AllocationId, SecurityGroupId, SubnetId, VpcId};
use crate::ec2::metadata::MetadataOptions;
use crate::ec2::network::{NetworkMode, PublishedPort, Zone};

/// The interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The VPC that it is in.
    pub vpc_id: VpcId,
    /// The subnet.
    pub subnet_id: SubnetId,
    /// The subnet's zone.
    pub zone: Zone,
    /// Its private address, for life.
    pub private_ip: Ipv4Addr,
    /// Its public address, an address of the host's loopback interface: while it runs, or as long as it has an elastic one.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// Whether it has a public address of its own while it runs.
    pub wants_public_ip: bool,
    /// The elastic address that it has in place of that.
    #[serde(default)]
    pub elastic_address: Option<AllocationId>,
    /// What it is connected to.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    /// The security groups that it is in.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupId>,
    /// How its metadata can be asked for.
    #[serde(default)]
    pub metadata_options: MetadataOptions,
}
