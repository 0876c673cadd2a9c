//! Network options of `wisp launch` and `wisp run`.

use std::net::Ipv4Addr;

use super::args::{NETWORK, flag_pair};
use cloud::network::NetworkSpec;
use ec2::network::{NetworkMode, PublishedPort, Zone};

/// Network options.
#[derive(Debug, Clone, clap::Args)]
pub struct NetworkArgs {
    /// Publish a guest port: [127.x.y.z:]HOST:GUEST[/udp]; can be repeated.
    #[arg(short, long = "publish", value_name = "HOST:GUEST", display_order = 100)]
    published: Vec<PublishedPort>,

    /// Network mode: vpc, user, none or auto.
    ///
    /// vpc: connect the instance to its VPC (not for `wisp run`). user: an isolated user-mode network through passt.
    /// none: only the metadata service and published ports. auto: vpc if the guest is an instance and this host
    /// supports it, else user if passt is installed, else none.
    #[arg(long = "network", value_name = "MODE", default_value = "auto", help_heading = NETWORK)]
    mode: NetworkMode,
}

impl NetworkArgs {
    /// Returns the requested mode and ports; the other fields have their defaults.
    pub fn spec(self) -> NetworkSpec {
        NetworkSpec { mode: self.mode, published: self.published, ..NetworkSpec::default() }
    }
}

/// Placement in a VPC.
#[derive(Debug, Clone, clap::Args)]
pub struct PlacementArgs {
    /// Subnet (see `wisp subnet`) [default: a subnet of the default VPC].
    #[arg(long, value_name = "SUBNET", help_heading = NETWORK)]
    subnet: Option<String>,

    /// Availability zone, which is just a label: us-east-1a to us-east-1f.
    #[arg(long, value_name = "ZONE", help_heading = NETWORK)]
    zone: Option<Zone>,

    /// Private address; must be free in the subnet.
    #[arg(long, value_name = "ADDRESS", help_heading = NETWORK)]
    private_ip: Option<Ipv4Addr>,

    /// Give the instance a public address while it is running [default: the subnet's setting].
    #[arg(long, help_heading = NETWORK)]
    public_ip: bool,

    /// Do not give the instance a public address.
    #[arg(long, conflicts_with = "public_ip", help_heading = NETWORK)]
    no_public_ip: bool,
}

impl PlacementArgs {
    /// Returns `spec` with this placement.
    pub fn placed(self, spec: NetworkSpec) -> NetworkSpec {
        let PlacementArgs { subnet, zone, private_ip, public_ip, no_public_ip } = self;
        let public_ip = flag_pair(public_ip, no_public_ip);
        NetworkSpec { subnet, zone, private_ip, public_ip, ..spec }
    }
}
