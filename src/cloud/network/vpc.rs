//! The default VPC, as its router is to know it: who is in it, and who may begin what with whom.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;

use super::super::error::CloudError;
use super::security_group::filters;
use super::{Cloud, MTU};
use crate::ec2::ErrorCode;
use crate::ec2::network::{DEFAULT_SUBNET, DEFAULT_VPC, NetworkMode, mac_address};
use crate::ec2::state::InstanceState;
use crate::host::router::{Attached, Interface, Router, RouterConfig, RouterError, WAY_OUT};
use crate::store::{InstanceRecord, NetworkRecord, SecurityGroupRecord};
use crate::vmm::link::{Cidr, MacAddress};

/// The folder of the default VPC's router.
const DEFAULT: &str = "default";

/// Whether an interface is in a VPC.
pub(super) fn is_in_vpc(network: &NetworkRecord) -> bool {
    network.mode == NetworkMode::Vpc
}

impl Cloud {
    /// Connects an instance to its VPC; returns its tap.
    pub(super) fn attach(&mut self, network: &NetworkRecord) -> Result<OwnedFd, CloudError> {
        let router = self.router()?;
        let config = self.router_config()?;
        let Attached { tap, has_way_out } = router.attach(&config, network.private_ip).map_err(refused)?;
        if !has_way_out {
            self.notice(format!(
                "The VPC has no way out: {WAY_OUT} (`sudo apt install passt`) is missing, or has ended; \
                 `wisp doctor` says more."
            ));
        }
        Ok(tap)
    }

    /// Has the VPC's router go by the groups and instances as they are now, if it runs.
    pub(super) fn retell_router(&mut self) -> Result<(), CloudError> {
        // Without it, nobody was ever connected.
        if !self.home.networks().join(DEFAULT).exists() {
            return Ok(());
        }
        let router = self.router()?;
        let config = self.router_config()?;
        router.apply(&config).map_err(refused)
    }

    /// The router, locked: what is read after this is newer than what another command has told it.
    fn router(&self) -> Result<Router, CloudError> {
        let folder = self.home.networks().join(DEFAULT);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(CloudError::file(&folder, "made"))?;
        Router::lock(&folder).map_err(refused)
    }

    fn router_config(&mut self) -> Result<RouterConfig, CloudError> {
        let interfaces = self.store.read::<_, CloudError>(|tx| {
            let groups: Vec<SecurityGroupRecord> = tx.list()?;
            let instances: Vec<InstanceRecord> = tx.list()?;
            let living = instances.iter().filter(|record| record.state != InstanceState::Terminated);
            let interface = |record: &InstanceRecord| {
                let network = record.network.as_ref().filter(|network| is_in_vpc(network))?;
                let filter = filters(&groups, &instances, network);
                Some(Interface { address: network.private_ip, mac: MacAddress(mac_address(record.id)), filter })
            };
            Ok(living.filter_map(interface).collect())
        })?;
        Ok(RouterConfig {
            range: Cidr { address: DEFAULT_VPC.base, prefix_length: DEFAULT_VPC.prefix_length },
            router: DEFAULT_SUBNET.router(),
            dns: DEFAULT_SUBNET.name_server(),
            mtu: MTU,
            interfaces,
        })
    }
}

fn refused(error: RouterError) -> CloudError {
    let hint = "`--network user` does without a VPC; `wisp doctor` says what the host has.";
    CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
}
