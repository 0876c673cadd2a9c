//! The network interfaces of instances.

use std::path::Path;

use super::super::Cloud;
use super::super::error::CloudError;
use super::super::lookup::{by_id, volumes_of};
use super::connection::{NetworkConnection, add_device, connect, device, write_link};
use super::filter::filters;
use super::link::link_of;
use super::metadata::Known;
use super::spec::is_in_vpc;
use ec2::network::NetworkMode;
use machine::config::MachineConfig;
use machine::control::{ControlRequest, Message};
use machine::network::NetstackConfig;
use node::passt;
use store::{InstanceRecord, KeyPairRecord, NetworkRecord, SecurityGroupRecord};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Interfaces<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Interfaces<'_> {
    /// Connects an instance's machine to its network.
    pub fn connect(
        &self,
        record: &InstanceRecord,
        dir: &Path,
        machine: &mut MachineConfig,
    ) -> Result<Option<NetworkConnection>, CloudError> {
        let Some(network) = &record.network else {
            machine.net = Some(device(record.id, None));
            return Ok(None);
        };
        let link = self.netstack_config(record, network)?;
        if is_in_vpc(network) {
            add_device(record.id, dir, &link, machine)?;
            return Ok(Some(NetworkConnection { device: self.cloud.routers().attach(network)?, user_mode: None }));
        }
        let connected = connect(record.id, dir, &link, network.mode, machine)?;
        if network.mode == NetworkMode::Auto
            && let Err(error) = passt::check()
        {
            self.cloud.warn(format!("Guests have no outbound connectivity: {error}."));
        }
        Ok(connected)
    }

    /// Returns the netstack configuration of an instance with the interface `network`.
    fn netstack_config(&self, record: &InstanceRecord, network: &NetworkRecord) -> Result<NetstackConfig, CloudError> {
        self.cloud.store.read(|tx| {
            let key = record.key_name.as_ref().map(|name| tx.get::<KeyPairRecord>(name)).transpose()?.flatten();
            let mut groups: Vec<SecurityGroupRecord> = tx.list()?;
            groups.retain(|group| network.security_groups.contains(&group.id));
            let instances: Vec<InstanceRecord> = tx.list()?;
            let filter = filters(&groups, &instances, network);
            let known = Known {
                subnet: by_id(tx, network.subnet_id)?,
                public_key: key.map(|key| key.public_key),
                volumes: volumes_of(tx, record)?,
                groups,
            };
            Ok(link_of(record, network, &known, filter))
        })
    }

    /// Makes a running instance's VMM reload its netstack configuration. Problems that the VMM reports become warnings.
    pub fn push(&self, record: &InstanceRecord) -> Result<(), CloudError> {
        let Some(network) = record.network.as_ref().filter(|_| record.state.has_machine()) else { return Ok(()) };
        let dir = self.cloud.dir(record.id);
        let link = write_link(dir.path(), &self.netstack_config(record, network)?)?;
        let reloaded = dir.connect().and_then(|mut machine| machine.ask(&ControlRequest::ReloadLink { link }));
        let problems = match reloaded {
            Ok(Message::Reloaded { problems }) => problems,
            // An instance that is ending needs no new configuration.
            Ok(_) | Err(CloudError::Control { .. }) => Vec::new(),
            Err(error) => vec![error.to_string()],
        };
        let warnings = problems.into_iter().map(|problem| format!("{}: {problem}", record.id));
        self.cloud.warnings.borrow_mut().extend(warnings);
        Ok(())
    }
}
