//! What `wisp launch` and `wisp run` take about a guest's network.

use std::net::Ipv4Addr;

use crate::cloud::network::NetworkSpec;
use crate::ec2::network::{NetworkMode, PublishedPort, Zone};

/// The options.
#[derive(Debug, Clone, clap::Args)]
pub struct NetworkArgs {
    /// Have a port of this host lead to the guest: [127.x.y.z:]HOST:GUEST[/udp]; repeat for more.
    #[arg(short, long = "publish", value_name = "HOST:GUEST")]
    published: Vec<PublishedPort>,

    /// What the guest's network is: vpc (its VPC, whose instances reach each other), user (one of its own, through passt to
    /// wherever this host reaches), none (only its metadata and its published ports), or auto (an instance's VPC where this
    /// host can have VPCs, else user where passt is installed).
    #[arg(long = "network", value_name = "MODE", default_value = "auto")]
    mode: NetworkMode,
}

impl NetworkArgs {
    /// What is asked for.
    pub fn spec(self) -> NetworkSpec {
        NetworkSpec { mode: self.mode, published: self.published, ..NetworkSpec::default() }
    }
}

/// Where in a VPC an instance is.
#[derive(Debug, Clone, clap::Args)]
pub struct PlacementArgs {
    /// The subnet that it is in (see `wisp subnet`): its id, the beginning of it, or its name; one of the default VPC's, if
    /// none is said.
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<String>,

    /// The availability zone, a label here: us-east-1a to us-east-1f.
    #[arg(long, value_name = "ZONE")]
    zone: Option<Zone>,

    /// Its private address, one of the subnet's that is free.
    #[arg(long, value_name = "ADDRESS")]
    private_ip: Option<Ipv4Addr>,

    /// Whether it has a public address while it runs, true or false; as its subnet says, if nothing is.
    #[arg(long, value_name = "BOOL")]
    public_ip: Option<bool>,
}

impl PlacementArgs {
    /// The network that is asked for, in this place.
    pub fn placed(self, spec: NetworkSpec) -> NetworkSpec {
        let PlacementArgs { subnet, zone, private_ip, public_ip } = self;
        NetworkSpec { subnet, zone, private_ip, public_ip, ..spec }
    }
}
