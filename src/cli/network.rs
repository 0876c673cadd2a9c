//! What `wisp launch` and `wisp run` take about a guest's network.

use crate::cloud::network::NetworkSpec;
use crate::ec2::network::{NetworkMode, PublishedPort};

/// The options.
#[derive(Debug, Clone, clap::Args)]
pub struct NetworkArgs {
    /// Have a port of this host lead to the guest: [127.x.y.z:]HOST:GUEST[/udp]; repeat for more.
    #[arg(short, long = "publish", value_name = "HOST:GUEST")]
    published: Vec<PublishedPort>,

    /// What the guest's network is: vpc (the default VPC, whose instances reach each other), user (one of its own, through
    /// passt to wherever this host reaches), none (only its metadata and its published ports), or auto (user where passt
    /// is installed).
    #[arg(long = "network", value_name = "MODE", default_value = "auto")]
    mode: NetworkMode,
}

impl NetworkArgs {
    /// What is asked for.
    pub fn spec(self) -> NetworkSpec {
        NetworkSpec { mode: self.mode, published: self.published, ..NetworkSpec::default() }
    }
}
