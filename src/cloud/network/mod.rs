//! The network of instances: their addresses, and what their machines' network devices are connected to.
//!
//! Each instance has a link of its own, whose services the monitor gives by a file in the instance's folder; behind the link
//! is a user-mode network, where the host has the program for it.

mod address;
mod filter;
mod link;
mod metadata;
mod security_group;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;

use sha2::{Digest, Sha256};
use wisp_agent::network::Network;

use super::Cloud;
use super::error::CloudError;
use super::machine::Folder;
use crate::ec2::metadata::{MetadataChange, MetadataOptions};
use crate::ec2::network::{DEFAULT_SUBNET, NetworkMode, Peer, PublishedPort, Rule, mac_address};
use crate::ec2::{ErrorCode, InstanceId};
use crate::host::home::write_private;
use crate::host::passt::{self, PasstConfig};
use crate::store::{InstanceRecord, KeyPairRecord, NetworkRecord, SecurityGroupRecord};
use crate::vmm::config::{MachineConfig, NetConfig};
use crate::vmm::control::{Message, Request};
use crate::vmm::link::{LinkConfig, MacAddress};

pub(super) use address::{give_addresses, take_public_address};
pub use link::{FILE, run_link};
pub(super) use security_group::chosen_groups;
pub use security_group::{RuleSpec, shown};

/// Bytes of the largest packet: what EC2 has within a VPC (jumbo frames).
pub const MTU: u16 = 9001;
/// What the user-mode network says, in an instance's folder.
const LOG: &str = "passt.log";

/// What was asked for of an instance's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// What it is connected to.
    pub mode: NetworkMode,
    /// Ports of the host that lead to it.
    pub published: Vec<PublishedPort>,
    /// The security groups that it is in, by names or identifiers; the default one, if none is said.
    pub security_groups: Vec<String>,
    /// How its metadata can be asked for, if not as it is by default.
    pub metadata: Option<MetadataChange>,
}

impl NetworkSpec {
    /// An interface as it is asked for, without addresses yet.
    pub(super) fn record(&self) -> NetworkRecord {
        NetworkRecord {
            private_ip: Ipv4Addr::UNSPECIFIED,
            public_ip: None,
            mode: self.mode,
            published: self.published.clone(),
            security_groups: Vec::new(),
            metadata_options: self.metadata.unwrap_or_default().applied(MetadataOptions::default()),
        }
    }
}

/// The interface of a fork: like the original's, with addresses of its own, and no ports of the host's, which lead to one.
pub(super) fn for_fork(original: Option<&NetworkRecord>) -> Option<NetworkRecord> {
    let original = original?.clone();
    Some(NetworkRecord { private_ip: Ipv4Addr::UNSPECIFIED, public_ip: None, published: Vec::new(), ..original })
}

/// Why an instance has no network.
pub fn no_network_notice() -> String {
    format!("Without {}, guests reach nothing outside; `{}` brings it.", passt::PROGRAM, passt::INSTALL)
}

/// The network device of the instance `id`.
pub(super) fn device(id: InstanceId, link: Option<&Path>) -> NetConfig {
    NetConfig { mac: MacAddress(mac_address(id)), mtu: MTU, link: link.map(Path::to_path_buf) }
}

/// Connects a machine whose link is `link`: gives it its device, tells its kernel, and starts what is behind it, unless that
/// is nothing. None is returned where the host has no program for it and it is not demanded.
pub(super) fn connect(
    id: InstanceId,
    folder: &Path,
    link: &LinkConfig,
    mode: NetworkMode,
    machine: &mut MachineConfig,
) -> Result<Option<OwnedFd>, CloudError> {
    let path = folder.join(FILE);
    let text = serde_json::to_vec_pretty(link).expect("a link is plain data");
    write_private(&path, &text).map_err(CloudError::file(&path, "written"))?;
    let device = device(id, Some(&path));
    let LinkConfig { address, prefix_length, router, ref dns, mtu, .. } = *link;
    let network = Network { mac: device.mac.0, address, prefix_length, router, dns: dns.clone(), mtu };
    machine.kernel.cmdline.push_str(&format!(" {}", network.to_option()));
    machine.net = Some(device);
    if mode == NetworkMode::None || mode == NetworkMode::Auto && !passt::is_installed() {
        return Ok(None);
    }
    let dns = dns.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let config = PasstConfig { address, prefix_length, router, dns, mtu, log: folder.join(LOG) };
    passt::spawn(&config).map(Some).map_err(|error| {
        let hint = "`--network none` does without; `wisp doctor` says what the host has.";
        CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
    })
}

impl Cloud {
    /// Where public addresses are looked for first: so that the instances of two stores on one host seldom meet.
    pub(super) fn address_origin(&self) -> u16 {
        let digest = Sha256::digest(self.home.root().as_os_str().as_encoded_bytes());
        u16::from_be_bytes([digest[0], digest[1]])
    }

    /// Connects an instance's machine, if it has a network.
    pub(super) fn connect(
        &mut self,
        record: &InstanceRecord,
        folder: &Folder,
        machine: &mut MachineConfig,
    ) -> Result<Option<OwnedFd>, CloudError> {
        let Some(network) = &record.network else {
            machine.net = Some(device(record.id, None));
            return Ok(None);
        };
        let link = self.link_of(record)?;
        let connected = connect(record.id, folder.path(), &link, network.mode, machine)?;
        if connected.is_none() && network.mode == NetworkMode::Auto {
            let notice = no_network_notice();
            if !self.notices.contains(&notice) {
                self.notices.push(notice);
            }
        }
        Ok(connected)
    }

    /// The link of an instance that has a network.
    fn link_of(&mut self, record: &InstanceRecord) -> Result<LinkConfig, CloudError> {
        let key = match &record.key_name {
            Some(name) => self.store.read::<_, CloudError>(|tx| Ok(tx.get::<KeyPairRecord>(name)?))?,
            None => None,
        };
        let public_key = key.map(|key| key.public_key);
        let volumes = self.volumes_of(record)?;
        let (groups, filter) = self.store.read::<_, CloudError>(|tx| {
            let ids = security_group::groups_of(record);
            let groups: Vec<SecurityGroupRecord> =
                tx.list()?.into_iter().filter(|group: &SecurityGroupRecord| ids.contains(&group.id)).collect();
            let rules: Vec<Rule> = groups.iter().flat_map(|group| group.rules.iter().cloned()).collect();
            let mut members = BTreeMap::new();
            for rule in &rules {
                if let Peer::Group(id) = rule.peer {
                    members.insert(rule.peer, security_group::members(tx, id)?);
                }
            }
            let filter = filter::filter_of(&rules, |peer| members.get(peer).cloned().unwrap_or_default());
            Ok((groups, filter))
        })?;
        Ok(link::link_of(record, public_key.as_deref(), &volumes, &groups, filter))
    }

    /// Tells a running instance's monitor what has changed of its link. What cannot be done is noticed.
    pub(super) fn retell(&mut self, record: &InstanceRecord) -> Result<(), CloudError> {
        if record.network.is_none() || !record.state.has_machine() {
            return Ok(());
        }
        let folder = self.folder(record.id);
        let path = folder.path().join(FILE);
        let link = self.link_of(record)?;
        let text = serde_json::to_vec_pretty(&link).expect("a link is plain data");
        write_private(&path, &text).map_err(CloudError::file(&path, "written"))?;
        let told = folder.connect().and_then(|mut monitor| monitor.ask(&Request::ReloadLink));
        let problems = match told {
            Ok(Message::Reloaded { problems }) => problems,
            // One that ends at this moment needs to know nothing more.
            Ok(_) | Err(CloudError::Control { .. }) => Vec::new(),
            Err(error) => vec![error.to_string()],
        };
        self.notices.extend(problems.into_iter().map(|problem| format!("{}: {problem}", record.id)));
        Ok(())
    }
}

/// The link of a guest that is nobody's instance: the first address of the default subnet.
pub(super) fn first_address() -> Ipv4Addr {
    DEFAULT_SUBNET.addresses().next().unwrap_or(DEFAULT_SUBNET.base)
}
