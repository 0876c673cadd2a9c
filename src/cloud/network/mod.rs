//! The network of instances: their addresses, and the backends of their network devices.
//!
//! Each instance's VMM has a netstack, configured by a file in the instance's directory. The netstack connects the
//! guest to the router of its VPC, to a user-mode network (passt), or to nothing else.

mod address;
mod elastic;
mod filter;
mod link;
mod metadata;
mod placement;
mod router;
mod security_group;
mod vpc;

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use super::Cloud;
use super::error::CloudError;
use super::lifecycle::volumes_of;
use ec2::InstanceId;
use ec2::id::SubnetId;
use ec2::metadata::MetadataChange;
use ec2::network::{NetworkMode, PublishedPort, Zone, mac_address};
use machine::config::NetConfig;
use machine::control::{ControlRequest, Message};
use machine::network::{MacAddress, NetstackConfig};
use node::instance::{Failure, MachineError, StartPlan};
use node::passt;
use store::{InstanceRecord, KeyPairRecord, NetworkRecord, SecurityGroupRecord, SubnetRecord};

pub(super) use address::{Addresses, take_public_address};
pub(super) use elastic::free_addresses_of;
pub(super) use link::run_link;
pub(super) use placement::Placement;
pub(super) use router::is_in_vpc;
pub(super) use security_group::chosen_groups;
use security_group::filters;
pub use security_group::{RuleSpec, shown};
pub use vpc::SubnetSpec;

/// Maximum packet size in bytes, as within a VPC in EC2 (jumbo frames).
pub const MTU: u16 = 9001;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    pub mode: NetworkMode,
    /// ID or name of the subnet. The default is a subnet of the default VPC.
    pub subnet: Option<String>,
    pub zone: Option<Zone>,
    /// Requested private address, which must be in the subnet. The default is a free one.
    pub private_ip: Option<Ipv4Addr>,
    /// True to request a public address. The default is the subnet's setting.
    pub public_ip: Option<bool>,
    /// Host ports that are forwarded to the instance.
    pub published: Vec<PublishedPort>,
    /// Names or IDs of the groups. The default is the VPC's default group.
    pub security_groups: Vec<String>,
    /// Changes to the metadata service's default options.
    pub metadata: Option<MetadataChange>,
}

/// Copies an interface for a fork, without its addresses and published ports, which only one instance can have.
pub(super) fn for_fork(original: Option<&NetworkRecord>) -> Option<NetworkRecord> {
    let original = original?.clone();
    Some(NetworkRecord {
        private_ip: Ipv4Addr::UNSPECIFIED,
        public_ip: None,
        elastic_address: None,
        published: Vec::new(),
        ..original
    })
}

/// Returns the network device of an instance, without a netstack configuration and limits.
pub(super) fn device(id: InstanceId) -> NetConfig {
    NetConfig { mac: MacAddress(mac_address(id)), mtu: MTU, link: None, limits: None }
}

/// Plans the network of a machine that is not in a VPC. There is no outbound connectivity in the mode `None`, and in the
/// mode `Auto` if passt is not available.
pub(super) fn plan(plan: &mut StartPlan, id: InstanceId, link: NetstackConfig, mode: NetworkMode) {
    let dns = link.dns.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
    plan.set_link(device(id), link);
    let is_connected = mode != NetworkMode::None && (mode != NetworkMode::Auto || passt::check().is_ok());
    if is_connected {
        plan.set_passt(dns);
    }
}

impl Cloud {
    /// Returns the offset at which the search for a public address starts. It depends on the data directory, so that
    /// two of them on one host rarely use the same address.
    pub(super) fn address_origin(&self) -> u16 {
        let digest = Sha256::digest(self.home.root().as_os_str().as_encoded_bytes());
        u16::from_be_bytes([digest[0], digest[1]])
    }

    /// Plans the network of an instance. An instance in a VPC gets a tap device when it is started.
    pub(super) fn plan_network(&self, plan: &mut StartPlan, record: &InstanceRecord) -> Result<(), CloudError> {
        let Some(network) = &record.network else {
            plan.machine.net = Some(device(record.id));
            return Ok(());
        };
        let link = self.link_of(record, network)?;
        if is_in_vpc(network) {
            plan.set_link(device(record.id), link);
            return Ok(());
        }
        self::plan(plan, record.id, link, network.mode);
        if network.mode == NetworkMode::Auto
            && let Err(error) = passt::check()
        {
            self.warn(format!("Guests have no outbound connectivity: {error}."));
        }
        Ok(())
    }

    /// Returns the netstack configuration of an instance with the interface `network`.
    fn link_of(&self, record: &InstanceRecord, network: &NetworkRecord) -> Result<NetstackConfig, CloudError> {
        self.store.read(|tx| {
            let key = record.key_name.as_ref().map(|name| tx.get::<KeyPairRecord>(name)).transpose()?.flatten();
            let volumes = volumes_of(tx, record)?;
            let mut groups: Vec<SecurityGroupRecord> = tx.list()?;
            groups.retain(|group| network.security_groups.contains(&group.id));
            let instances: Vec<InstanceRecord> = tx.list()?;
            let filter = filters(&groups, &instances, network);
            let known = link::Known {
                subnet: tx
                    .get::<SubnetRecord>(&network.subnet_id.to_string())?
                    .ok_or_else(|| SubnetId::not_found(&network.subnet_id.to_string()))?,
                public_key: key.map(|key| key.public_key),
                volumes,
                groups,
            };
            Ok(link::link_of(record, network, &known, filter))
        })
    }

    /// Makes a running instance's VMM reload its netstack configuration. Problems that the VMM reports become warnings.
    pub(super) fn push_network_config(&self, record: &InstanceRecord) -> Result<(), CloudError> {
        let Some(network) = record.network.as_ref().filter(|_| record.state.has_machine()) else { return Ok(()) };
        let dir = self.dir(record.id);
        let link = dir.write_link(&self.link_of(record, network)?)?;
        let reloaded = dir.connect().and_then(|mut machine| machine.ask(&ControlRequest::ReloadLink { link }));
        let problems = match reloaded {
            Ok(Message::Reloaded { problems }) => problems,
            // An instance that is ending needs no new configuration.
            Ok(_) | Err(MachineError { failure: Failure::Control(_), .. }) => Vec::new(),
            Err(error) => vec![error.to_string()],
        };
        self.warnings.borrow_mut().extend(problems.into_iter().map(|problem| format!("{}: {problem}", record.id)));
        Ok(())
    }
}

/// Returns true if instances can be connected to their VPCs on this host.
fn router_is_possible() -> bool {
    node::router::check().is_ok()
}
