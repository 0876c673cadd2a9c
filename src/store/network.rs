//! An instance's network interface in the store.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use ec2::id::{AllocationId, SecurityGroupId, SubnetId, VpcId};
use ec2::metadata::MetadataOptions;
use ec2::network::{NetworkMode, PublishedPort, Zone};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub vpc_id: VpcId,
    pub subnet_id: SubnetId,
    pub zone: Zone,
    /// Fixed for as long as the interface exists.
    pub private_ip: Ipv4Addr,
    /// One of the host's loopback addresses. Set while the instance has an elastic address, or while it is running if
    /// `wants_public_ip` is true.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// True if the instance should have a public address while it is running.
    pub wants_public_ip: bool,
    /// The associated elastic address, which replaces the public address.
    #[serde(default)]
    pub elastic_address: Option<AllocationId>,
    #[serde(default)]
    pub mode: NetworkMode,
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupId>,
    #[serde(default)]
    pub metadata_options: MetadataOptions,
}
