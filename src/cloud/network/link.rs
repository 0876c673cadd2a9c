//! An instance's link, as its monitor is to know it.

use std::net::Ipv4Addr;

use super::super::image::Manifest;
use super::filter::public_forwards;
use super::metadata::{self, tree_of};
use super::router::is_in_vpc;
use super::{MTU, NetworkSpec};
use crate::ec2::network::{DOMAIN, Protocol, PublishedPort, SubnetRange, Zone, private_host_name};
use crate::ec2::{InstanceId, metadata::MetadataOptions};
use crate::store::{InstanceRecord, NetworkRecord, SecurityGroupRecord, SubnetRecord, VolumeRecord};
use crate::vmm::link::{Filter, Forward, LinkConfig, MetadataConfig, Transport};

/// The link's file in an instance's folder.
pub const FILE: &str = "link.json";

/// What the store knows of what belongs to an instance.
#[derive(Debug)]
pub(super) struct Known {
    /// The subnet that it is in.
    pub subnet: SubnetRecord,
    /// The public half of its key pair.
    pub public_key: Option<String>,
    /// Its volumes.
    pub volumes: Vec<VolumeRecord>,
    /// Its security groups.
    pub groups: Vec<SecurityGroupRecord>,
}

/// The link of an instance.
pub(super) fn link_of(record: &InstanceRecord, network: &NetworkRecord, known: &Known, filter: Filter) -> LinkConfig {
    let address = network.private_ip;
    let mut forwards: Vec<Forward> = network.published.iter().map(forward).collect();
    if let Some(public) = network.public_ip {
        forwards.extend(public_forwards(public, &filter));
    }
    let tree = tree_of(record, network, known);
    let document = metadata::identity_document(record, network);
    let metadata = metadata_config(network.metadata_options, tree, document, user_data_of(record));
    // In a VPC, its router filters.
    let filter = (!is_in_vpc(network)).then_some(filter);
    LinkConfig { forwards, filter, metadata: Some(metadata), ..plain(address, known.subnet.range()) }
}

/// An instance's user data; empty user data, which older versions stored, is none.
fn user_data_of(record: &InstanceRecord) -> Option<String> {
    record.user_data.clone().filter(|text| !text.is_empty())
}

/// The link of a guest that is there for one command.
pub fn run_link(id: InstanceId, image: Option<&Manifest>, spec: &NetworkSpec) -> LinkConfig {
    // Nobody else is on its network: it has the first address that an instance can have.
    let subnet = SubnetRange::default_in(Zone::A);
    let address = subnet.addresses().next().unwrap_or(subnet.own.base);
    let options = spec
        .metadata
        .unwrap_or_default()
        .applied(MetadataOptions::of_image(image.and_then(|image| image.imds_support)));
    let name = image.map_or("(none)", |image| image.name.as_str());
    let tree = metadata::run_tree(id, name, address, subnet);
    let metadata = metadata_config(options, tree, "{}".into(), None);
    let forwards = spec.published.iter().map(forward).collect();
    LinkConfig { forwards, metadata: Some(metadata), ..plain(address, subnet) }
}

fn plain(address: Ipv4Addr, subnet: SubnetRange) -> LinkConfig {
    LinkConfig {
        address,
        prefix_length: subnet.own.prefix_length,
        router: subnet.router(),
        dns: vec![subnet.name_server()],
        mtu: MTU,
        hostname: private_host_name(address),
        domain: DOMAIN.into(),
        forwards: Vec::new(),
        filter: None,
        metadata: None,
    }
}

fn metadata_config(
    options: MetadataOptions,
    mut tree: metadata::Tree,
    identity_document: String,
    user_data: Option<String>,
) -> MetadataConfig {
    if !options.tags {
        tree.retain(|path, _| !path.starts_with("tags/"));
    }
    MetadataConfig {
        enabled: options.endpoint,
        tokens_required: options.tokens_required,
        hop_limit: options.hop_limit,
        tree,
        identity_document,
        user_data,
    }
}

fn forward(port: &PublishedPort) -> Forward {
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    };
    Forward { transport, host: port.host, guest_port: port.guest_port }
}
