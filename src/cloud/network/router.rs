//! Configures a VPC's router: its interfaces and their packet filters.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::super::error::CloudError;
use super::security_group::filters;
use super::{Cloud, MTU};
use ec2::ErrorCode;
use ec2::id::VpcId;
use ec2::network::{NetworkMode, SubnetRange, mac_address};
use ec2::state::InstanceState;
use machine::network::MacAddress;
use node::router::{self, Attached, Interface, Router, RouterConfig, RouterError, RouterRecovery, UPLINK_PROGRAM};
use store::{InstanceRecord, NetworkRecord, SecurityGroupRecord, VpcRecord};

pub(super) fn is_in_vpc(network: &NetworkRecord) -> bool {
    network.mode == NetworkMode::Vpc
}

impl Cloud {
    /// Connects an instance to its VPC. Returns the instance's tap device.
    pub(super) fn attach(&mut self, network: &NetworkRecord) -> Result<OwnedFd, CloudError> {
        let router = self.router(network.vpc_id)?;
        let config = self.router_config(network.vpc_id)?;
        let Attached { tap, recovery } = router.attach(&config, network.private_ip).map_err(refused)?;
        if let Some(recovery) = recovery {
            self.notice_recovery(network.vpc_id, &recovery);
        }
        self.attached.insert(network.vpc_id);
        Ok(tap)
    }

    /// Adds a notice for each VPC that instances were attached to and that has no uplink. Call this after starting the
    /// instances, to give the uplink time to come up.
    pub(crate) fn notice_missing_uplinks(&mut self) {
        for vpc in std::mem::take(&mut self.attached) {
            // An error means that the router is ending, so it needs no uplink.
            if let Ok(false) = router::has_uplink(&self.router_directory(vpc)) {
                self.notice_once(format!(
                    "The VPC has no uplink: {UPLINK_PROGRAM} (`sudo apt install passt`) is missing or has exited; \
                     run `wisp doctor` for details."
                ));
            }
        }
    }

    /// Applies the current security groups and instances to the routers of all VPCs.
    pub(super) fn update_routers(&mut self) -> Result<(), CloudError> {
        for vpc in self.vpcs()? {
            // A VPC without a directory has never had an attached instance, so it has no router.
            if self.router_directory(vpc.id).exists() {
                let router = self.router(vpc.id)?;
                if let Some(recovery) = router.apply(&self.router_config(vpc.id)?).map_err(refused)? {
                    self.notice_recovery(vpc.id, &recovery);
                }
            }
        }
        Ok(())
    }

    /// Restarts the killed routers of VPCs with running instances, if an instance still holds the router's network
    /// namespace. A failure becomes a notice, because the user's command may not need the router.
    pub(crate) fn restart_routers(&mut self, records: &[InstanceRecord]) {
        let running = records.iter().filter(|record| record.state.has_machine());
        let networks = running.filter_map(|record| record.network.as_ref()).filter(|network| is_in_vpc(network));
        let vpcs: BTreeSet<VpcId> = networks.map(|network| network.vpc_id).collect();
        for vpc in vpcs.into_iter().filter(|vpc| router::is_killed(&self.router_directory(*vpc))).collect::<Vec<_>>() {
            match self.restart_router(vpc) {
                // If the router cannot be restarted, the commands that need it report that.
                Ok(Some(recovery)) if recovery.uplink.is_some() => self.notice_recovery(vpc, &recovery),
                Ok(_) => {}
                Err(error) => {
                    self.notice_once(format!("The router of {vpc} was killed and cannot be restarted: {error}"))
                }
            }
        }
    }

    fn restart_router(&mut self, vpc: VpcId) -> Result<Option<RouterRecovery>, CloudError> {
        let router = self.router(vpc)?;
        router.apply(&self.router_config(vpc)?).map_err(refused)
    }

    fn notice_recovery(&mut self, vpc: VpcId, recovery: &RouterRecovery) {
        let uplink = match recovery.uplink {
            Some(true) => Some("it was restarted, and connections stay open"),
            Some(false) => Some("it was restarted without an uplink; its instances stay connected"),
            None => None,
        };
        let disconnected = (!recovery.disconnected.is_empty())
            .then(|| format!("{} have no network until you stop and start them", recovery.disconnected.join(", ")));
        let said: Vec<String> = uplink.map(String::from).into_iter().chain(disconnected).collect();
        if !said.is_empty() {
            self.notice_once(format!("The router of {vpc} was killed: {}.", said.join("; ")));
        }
    }

    fn router_directory(&self, vpc: VpcId) -> PathBuf {
        self.home.networks().join(vpc.to_string())
    }

    /// Locks the router. Read its configuration under the lock, so that a newer one is not replaced by an older one.
    fn router(&self, vpc: VpcId) -> Result<Router, CloudError> {
        let dir = self.router_directory(vpc);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(CloudError::file(&dir, "create"))?;
        Router::lock(&dir).map_err(refused)
    }

    fn router_config(&mut self, vpc: VpcId) -> Result<RouterConfig, CloudError> {
        let instances_directory = self.home.instances();
        let (range, interfaces) = self.store.read::<_, CloudError>(|tx| {
            let record = tx.get::<VpcRecord>(&vpc.to_string())?.ok_or_else(|| VpcId::not_found(&vpc.to_string()))?;
            let groups: Vec<SecurityGroupRecord> = tx.list()?;
            let instances: Vec<InstanceRecord> = tx.list()?;
            let living = instances.iter().filter(|record| record.state != InstanceState::Terminated);
            let interface = |record: &InstanceRecord| {
                let network = record.network.as_ref().filter(|network| network.vpc_id == vpc && is_in_vpc(network))?;
                let filter = filters(&groups, &instances, network);
                let dir = instances_directory.join(record.id.to_string());
                Some(Interface { address: network.private_ip, dir, mac: MacAddress(mac_address(record.id)), filter })
            };
            Ok((record.cidr, living.filter_map(interface).collect()))
        })?;
        // The router serves all subnets. Its own address is the router address of a subnet that spans the whole VPC.
        let first = SubnetRange { own: range, vpc: range };
        Ok(RouterConfig { range, router: first.router(), dns: first.name_server(), mtu: MTU, interfaces })
    }
}

fn refused(error: RouterError) -> CloudError {
    let hint = "Use `--network user` to do without a VPC, or run `wisp doctor` to check the host.";
    CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
}
