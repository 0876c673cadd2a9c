//! An instance's network interface in the store.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::ec2::id::{AllocationId, SecurityGroupId, SubnetId, VpcId};
use crate::ec2::metadata::MetadataOptions;
use crate::ec2::network::{NetworkMode, PublishedPort, Zone};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The VPC.
    pub vpc_id: VpcId,
    /// The subnet.
    pub subnet_id: SubnetId,
    /// The subnet's zone.
    pub zone: Zone,
    /// The private address, which never changes.
    pub private_ip: Ipv4Addr,
    /// The public address, one of the host's loopback addresses: set while the instance runs, or while an elastic
    /// address is associated.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// True if the instance gets a public address of its own while it runs.
    pub wants_public_ip: bool,
    /// The associated elastic address, which replaces the public address.
    #[serde(default)]
    pub elastic_address: Option<AllocationId>,
    /// The requested network mode.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Published ports of the host.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    /// The security groups.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupId>,
    /// The options of the metadata service.
    #[serde(default)]
    pub metadata_options: MetadataOptions,
}
