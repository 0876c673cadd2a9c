//! Configures a VPC's router: its interfaces and their packet filters.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::super::error::CloudError;
use super::super::lookup::by_id;
use super::super::{Cloud, Outcome, Warnings};
use super::filter::filters;
use super::lookup::all_vpcs;
use super::routes::Routing;
use super::spec::{MTU, is_in_vpc};
use ec2::ErrorCode;
use ec2::id::VpcId;
use ec2::network::{SubnetRange, mac_address};
use ec2::state::InstanceState;
use machine::network::MacAddress;
use node::router::{self, Attached, Interface, Router, RouterConfig, RouterError, RouterRecovery, UPLINK_PROGRAM};
use store::{InstanceRecord, SecurityGroupRecord, VpcRecord};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Routers<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Routers<'_> {
    /// Connects instances to a VPC. Returns their tap devices, in the order of the addresses. Traffic passes after
    /// [`settle`](Self::settle).
    pub fn attach(&self, vpc: VpcId, addresses: &[Ipv4Addr]) -> Result<Outcome<Vec<OwnedFd>>, CloudError> {
        let router = self.lock(vpc)?;
        let config = self.config(vpc)?;
        let Attached { taps, recovery } = router.attach(&config, addresses).map_err(refused)?;
        Ok(Outcome { value: taps, warnings: recovery.and_then(|recovery| report(vpc, &recovery)).into() })
    }

    /// Waits until the packet filters of these instances are in force, so that their traffic passes.
    pub fn settle(&self, vpc: VpcId, addresses: Vec<Ipv4Addr>) -> Result<(), CloudError> {
        self.lock(vpc)?.settle(addresses).map_err(refused)
    }

    /// Returns a warning if one of these VPCs has no uplink. Call this after starting the instances, to give the uplink
    /// time to come up.
    pub(crate) fn missing_uplinks(&self, vpcs: impl IntoIterator<Item = VpcId>) -> Warnings {
        let mut warnings = Warnings::default();
        for vpc in vpcs {
            // An error means that the router is ending, so it needs no uplink.
            if let Ok(false) = router::has_uplink(&self.directory(vpc)) {
                warnings.push(format!(
                    "The VPC has no uplink: {UPLINK_PROGRAM} (`sudo apt install passt`) is missing or has exited; \
                     run `wisp doctor` for details."
                ));
            }
        }
        warnings
    }

    /// Applies the current security groups and instances to the routers of all VPCs.
    pub(super) fn update(&self) -> Result<Warnings, CloudError> {
        let mut warnings = Warnings::default();
        for vpc in self.cloud.store.read(all_vpcs)? {
            // A VPC without a directory has never had an attached instance, so it has no router.
            if self.directory(vpc.meta.id).exists()
                && let Some(recovery) = self.apply(vpc.meta.id)?
            {
                warnings.extend(report(vpc.meta.id, &recovery));
            }
        }
        Ok(warnings)
    }

    /// Restarts the killed routers of VPCs with running instances, if an instance still holds the router's network
    /// namespace. A failure becomes a warning, because the user's command may not need the router.
    pub(crate) fn restart_killed(&self, records: &[InstanceRecord]) -> Warnings {
        let mut warnings = Warnings::default();
        let running = records.iter().filter(|record| record.status.state.has_machine());
        let networks = running.filter_map(|record| record.status.network.as_ref()).filter(|network| is_in_vpc(network));
        let vpcs: BTreeSet<VpcId> = networks.map(|network| network.vpc_id).collect();
        for vpc in vpcs.into_iter().filter(|vpc| router::is_killed(&self.directory(*vpc))).collect::<Vec<_>>() {
            match self.apply(vpc) {
                // If the router cannot be restarted, the commands that need it report that.
                Ok(Some(recovery)) if recovery.uplink.is_some() => warnings.extend(report(vpc, &recovery)),
                Ok(_) => {}
                Err(error) => warnings.push(format!("The router of {vpc} was killed and cannot be restarted: {error}")),
            }
        }
        warnings
    }

    /// Applies the current configuration. Replaces a killed router if an instance still holds its network namespace.
    fn apply(&self, vpc: VpcId) -> Result<Option<RouterRecovery>, CloudError> {
        let router = self.lock(vpc)?;
        router.apply(&self.config(vpc)?).map_err(refused)
    }

    fn directory(&self, vpc: VpcId) -> PathBuf {
        self.cloud.home.networks().join(vpc.to_string())
    }

    /// Locks the router. Read its configuration under the lock, so that a newer one is not replaced by an older one.
    fn lock(&self, vpc: VpcId) -> Result<Router, CloudError> {
        let dir = self.directory(vpc);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(CloudError::file(&dir, "create"))?;
        Router::lock(&dir).map_err(refused)
    }

    fn config(&self, vpc: VpcId) -> Result<RouterConfig, CloudError> {
        let instances_directory = self.cloud.home.instances();
        let (range, interfaces) = self.cloud.store.read::<_, CloudError>(|tx| {
            let record: VpcRecord = by_id(tx, vpc)?;
            let groups: Vec<SecurityGroupRecord> = tx.list()?;
            let routing = Routing::read(tx)?;
            let instances: Vec<InstanceRecord> = tx.list()?;
            let living = instances.iter().filter(|record| record.status.state != InstanceState::Terminated);
            let interface = |record: &InstanceRecord| {
                let network =
                    record.status.network.as_ref().filter(|network| network.vpc_id == vpc && is_in_vpc(network))?;
                let filter = filters(&groups, &instances, network);
                let dir = instances_directory.join(record.meta.id.to_string());
                Some(Interface {
                    address: network.private_ip,
                    dir,
                    mac: MacAddress(mac_address(record.meta.id)),
                    filter,
                    routes: routing.destinations(vpc, network.subnet_id),
                })
            };
            Ok((record.spec.cidr, living.filter_map(interface).collect()))
        })?;
        // The router serves all subnets. Its own address is the router address of a subnet that spans the whole VPC.
        let first = SubnetRange { own: range, vpc: range };
        Ok(RouterConfig { range, router: first.router(), dns: first.name_server(), mtu: MTU, interfaces })
    }
}

/// Returns a warning about the recovery of a killed router, if users notice it.
fn report(vpc: VpcId, recovery: &RouterRecovery) -> Option<String> {
    let uplink = match recovery.uplink {
        Some(true) => Some("it was restarted, and connections stay open"),
        Some(false) => Some("it was restarted without an uplink; its instances stay connected"),
        None => None,
    };
    let disconnected = (!recovery.disconnected.is_empty())
        .then(|| format!("{} have no network until you stop and start them", recovery.disconnected.join(", ")));
    let said: Vec<String> = uplink.map(String::from).into_iter().chain(disconnected).collect();
    (!said.is_empty()).then(|| format!("The router of {vpc} was killed: {}.", said.join("; ")))
}

fn refused(error: RouterError) -> CloudError {
    let hint = "Use `--network user` to do without a VPC, or run `wisp doctor` to check the host.";
    CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
}
