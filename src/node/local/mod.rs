//! The node on this host: a data directory, and the VMM processes of its instances.

mod disks;
mod end;
mod images;
mod instances;
mod volumes;

use ec2::HostCapacity;
use sha2::{Digest, Sha256};

pub use images::unregistered;
pub use volumes::{IMAGES, VOLUMES};

use crate::error::NodeError;
use crate::home::Home;
use crate::host::{ImageHost, InstanceHost, Node, VolumeHost};
use crate::{passt, probe, router};

#[derive(Debug, Clone)]
pub struct LocalNode {
    home: Home,
}

impl LocalNode {
    pub fn new(home: Home) -> LocalNode {
        LocalNode { home }
    }
}

impl Node for LocalNode {
    fn capacity(&self) -> HostCapacity {
        probe::resources()
    }

    fn address_origin(&self) -> u16 {
        let digest = Sha256::digest(self.home.root().as_os_str().as_encoded_bytes());
        u16::from_be_bytes([digest[0], digest[1]])
    }

    fn check_vpc_network(&self) -> Result<(), NodeError> {
        router::check().map_err(|error| NodeError::Network(error.to_string()))
    }

    fn check_user_network(&self) -> Result<(), NodeError> {
        passt::check().map_err(|error| NodeError::Network(error.to_string()))
    }

    fn instances(&self) -> &dyn InstanceHost {
        self
    }

    fn volumes(&self) -> &dyn VolumeHost {
        self
    }

    fn images(&self) -> &dyn ImageHost {
        self
    }
}
