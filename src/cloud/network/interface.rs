//! The network interfaces of instances.

use std::net::Ipv4Addr;

use super::super::error::CloudError;
use super::super::lookup::{by_id, volumes_of};
use super::super::{Cloud, Outcome, Warnings};
use super::filter::filters;
use super::link::link_of;
use super::metadata::Known;
use super::routes::Routing;
use ec2::InstanceId;
use ec2::network::NetworkMode;
use machine::network::NetstackConfig;
use node::host::{Connection, NetworkPlan};
use node::instance::StartPlan;
use node::machine_config::device;
use node::passt;
use store::{InstanceRecord, KeyPairRecord, NetworkRecord, SecurityGroupRecord};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Interfaces<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Interfaces<'_> {
    /// Plans the network of an instance. An instance in a VPC gets a tap device when it is started. Returns `None` for
    /// an instance without an interface.
    pub fn plan(&self, record: &InstanceRecord) -> Result<Outcome<Option<NetworkPlan>>, CloudError> {
        let mut warnings = Warnings::default();
        let Some(network) = &record.status.network else { return Ok(Outcome::default()) };
        let link = self.netstack_config(record, network)?;
        let connection = match network.mode {
            NetworkMode::Vpc | NetworkMode::None => Connection::None,
            NetworkMode::User => Connection::User,
            NetworkMode::Auto => match self.cloud.node.check_user_network() {
                Ok(()) => Connection::User,
                Err(error) => {
                    warnings.push(format!("Guests have no outbound connectivity: {error}."));
                    Connection::None
                }
            },
        };
        Ok(Outcome { value: Some(NetworkPlan { link, connection }), warnings })
    }

    /// Returns the netstack configuration of an instance with the interface `network`.
    fn netstack_config(&self, record: &InstanceRecord, network: &NetworkRecord) -> Result<NetstackConfig, CloudError> {
        self.cloud.store.read(|tx| {
            let key = record.spec.key_name.as_ref().map(|name| tx.get::<KeyPairRecord>(name)).transpose()?.flatten();
            let mut groups: Vec<SecurityGroupRecord> = tx.list()?;
            groups.retain(|group| network.security_groups.contains(&group.meta.id));
            let instances: Vec<InstanceRecord> = tx.list()?;
            let filter = filters(&groups, &instances, network);
            let destinations = Routing::read(tx)?.destinations(network.vpc_id, network.subnet_id);
            let known = Known {
                subnet: by_id(tx, network.subnet_id)?,
                public_key: key.map(|key| key.spec.public_key),
                volumes: volumes_of(tx, record)?,
                groups,
            };
            Ok(link_of(record, network, &known, filter, &destinations))
        })
    }

    /// Makes a running instance's VMM reload its netstack configuration. Problems that the VMM reports become warnings.
    pub fn push(&self, record: &InstanceRecord) -> Result<Warnings, CloudError> {
        let mut warnings = Warnings::default();
        let Some(network) = record.status.network.as_ref().filter(|_| record.status.state.has_machine()) else {
            return Ok(warnings);
        };
        let link = self.netstack_config(record, network)?;
        let problems = self.cloud.node.instances().reload_link(record.meta.id, &link)?;
        warnings.extend(problems.into_iter().map(|problem| format!("{}: {problem}", record.meta.id)));
        Ok(warnings)
    }
}

/// Plans the network of a machine that is not in a VPC. There is no outbound connectivity in the mode `None`, and in the
/// mode `Auto` if passt is not available.
pub(crate) fn plan(plan: &mut StartPlan, id: InstanceId, link: NetstackConfig, mode: NetworkMode) {
    let dns = link.dns.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
    plan.set_link(device(id), link);
    let is_connected = mode != NetworkMode::None && (mode != NetworkMode::Auto || passt::check().is_ok());
    if is_connected {
        plan.set_passt(dns);
    }
}
