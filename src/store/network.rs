//! An instance's network interface, as it is kept with it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::ec2::id::SecurityGroupId;
use crate::ec2::metadata::MetadataOptions;
use crate::ec2::network::{NetworkMode, PublishedPort};

/// The interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its private address, for life.
    pub private_ip: Ipv4Addr,
    /// Its public address, an address of the host's loopback interface, while it runs.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
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
