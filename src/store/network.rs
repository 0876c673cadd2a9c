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
    /// Never changes.
    pub private_ip: Ipv4Addr,
    /// One of the host's loopback addresses, set while the instance is running or has an elastic address.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// True if the instance gets its own public address while it is running.
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
