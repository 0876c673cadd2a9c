//! A VPC, as its router is to know it: who is in it, and who may begin what with whom.

use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::super::error::CloudError;
use super::security_group::filters;
use super::{Cloud, MTU};
use crate::ec2::ErrorCode;
use crate::ec2::id::VpcId;
use crate::ec2::network::{NetworkMode, SubnetRange, mac_address};
use crate::ec2::state::InstanceState;
use crate::host::router::{Attached, Interface, Router, RouterConfig, RouterError, WAY_OUT};
use crate::store::{InstanceRecord, NetworkRecord, SecurityGroupRecord, VpcRecord};
use crate::vmm::link::{Cidr, MacAddress};

/// Whether an interface is connected to its VPC.
pub(super) fn is_in_vpc(network: &NetworkRecord) -> bool {
    network.mode == NetworkMode::Vpc
}

impl Cloud {
    /// Connects an instance to its VPC; returns its tap.
    pub(super) fn attach(&mut self, network: &NetworkRecord) -> Result<OwnedFd, CloudError> {
        let router = self.router(network.vpc_id)?;
        let config = self.router_config(network.vpc_id)?;
        let Attached { tap, has_way_out, is_first } = router.attach(&config, network.private_ip).map_err(refused)?;
        if is_first {
            self.notice_cut_off(network.vpc_id, Some(network.private_ip))?;
        }
        if !has_way_out {
            self.notice(format!(
                "The VPC has no way out: {WAY_OUT} (`sudo apt install passt`) is missing, or has ended; \
                 `wisp doctor` says more."
            ));
        }
        Ok(tap)
    }

    /// Has the routers of VPCs go by the groups and instances as they are now, where they run.
    pub(super) fn retell_routers(&mut self) -> Result<(), CloudError> {
        for vpc in self.vpcs()? {
            // Without its folder, nobody was ever connected.
            if self.router_folder(vpc.id).exists() {
                let router = self.router(vpc.id)?;
                let runs = router.apply(&self.router_config(vpc.id)?).map_err(refused)?;
                if !runs {
                    self.notice_cut_off(vpc.id, None)?;
                }
            }
        }
        Ok(())
    }

    /// Says which running instances of a VPC, but for that with the address `but`, have lost its router: somebody killed it.
    fn notice_cut_off(&mut self, vpc: VpcId, but: Option<Ipv4Addr>) -> Result<(), CloudError> {
        let is_cut_off =
            |network: &NetworkRecord| network.vpc_id == vpc && is_in_vpc(network) && Some(network.private_ip) != but;
        let instances = self.all_instances()?;
        let running = instances.iter().filter(|record| record.state == InstanceState::Running);
        let cut_off: Vec<String> = running
            .filter(|record| record.network.as_ref().is_some_and(is_cut_off))
            .map(|record| record.id.to_string())
            .collect();
        if !cut_off.is_empty() {
            self.notice(format!(
                "The router of {vpc} was killed: {} reach nobody until they are stopped and started.",
                cut_off.join(", ")
            ));
        }
        Ok(())
    }

    fn router_folder(&self, vpc: VpcId) -> PathBuf {
        self.home.networks().join(vpc.to_string())
    }

    /// The router, locked: what is read after this is newer than what another command has told it.
    fn router(&self, vpc: VpcId) -> Result<Router, CloudError> {
        let folder = self.router_folder(vpc);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(CloudError::file(&folder, "made"))?;
        Router::lock(&folder).map_err(refused)
    }

    fn router_config(&mut self, vpc: VpcId) -> Result<RouterConfig, CloudError> {
        let (range, interfaces) = self.store.read::<_, CloudError>(|tx| {
            let record = tx.get::<VpcRecord>(&vpc.to_string())?.ok_or_else(|| VpcId::not_found(&vpc.to_string()))?;
            let groups: Vec<SecurityGroupRecord> = tx.list()?;
            let instances: Vec<InstanceRecord> = tx.list()?;
            let living = instances.iter().filter(|record| record.state != InstanceState::Terminated);
            let interface = |record: &InstanceRecord| {
                let network = record.network.as_ref().filter(|network| network.vpc_id == vpc && is_in_vpc(network))?;
                let filter = filters(&groups, &instances, network);
                Some(Interface { address: network.private_ip, mac: MacAddress(mac_address(record.id)), filter })
            };
            Ok((record.cidr, living.filter_map(interface).collect()))
        })?;
        // Each subnet's router is this one; what it says itself, it says as the first.
        let first = SubnetRange { own: range, vpc: range };
        Ok(RouterConfig {
            range: Cidr { address: range.base, prefix_length: range.prefix_length },
            router: first.router(),
            dns: first.name_server(),
            mtu: MTU,
            interfaces,
        })
    }
}

fn refused(error: RouterError) -> CloudError {
    let hint = "`--network user` does without a VPC; `wisp doctor` says what the host has.";
    CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
}
