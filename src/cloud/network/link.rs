//! Builds the configuration of an instance's netstack.

use std::net::Ipv4Addr;

use super::filter::public_forwards;
use super::metadata::{self, Known, tree_of};
use super::routes::{reaches_host, restricted};
use super::spec::{MTU, NetworkSpec, is_in_vpc};
use ec2::network::{DOMAIN, Protocol, PublishedPort, SubnetRange, Zone, private_host_name};
use ec2::{InstanceId, metadata::MetadataOptions};
use ipnet::Ipv4Net;
use machine::network::{Filter, Forward, MetadataConfig, NetstackConfig, Transport};
use node::image::Manifest;
use store::{InstanceRecord, NetworkRecord};

pub(super) fn link_of(
    record: &InstanceRecord,
    network: &NetworkRecord,
    known: &Known,
    filter: Filter,
    destinations: &[Ipv4Net],
) -> NetstackConfig {
    let address = network.private_ip;
    let mut forwards: Vec<Forward> = network.published.iter().map(forward).collect();
    if let Some(public) = network.public_ip.filter(|_| reaches_host(destinations)) {
        forwards.extend(public_forwards(public, &filter));
    }
    let tree = tree_of(record, network, known);
    let document = metadata::identity_document(record, network);
    let metadata = metadata_config(network.metadata_options, tree, document, user_data_of(record));
    // In a VPC, the router filters packets, so the netstack need not.
    let filter = (!is_in_vpc(network)).then(|| restricted(filter, destinations));
    NetstackConfig { forwards, filter, metadata: Some(metadata), ..plain(address, known.subnet.range()) }
}

/// Returns the user data. Older versions stored empty user data, which is the same as none.
fn user_data_of(record: &InstanceRecord) -> Option<String> {
    record.spec.user_data.clone().filter(|text| !text.is_empty())
}

pub fn run_link(id: InstanceId, image: Option<&Manifest>, spec: &NetworkSpec) -> NetstackConfig {
    // The guest is alone on its network, so it gets the first usable address.
    let subnet = SubnetRange::default_in(Zone::A);
    let address = subnet.addresses().next().unwrap_or(subnet.own.network());
    let options = spec
        .metadata
        .unwrap_or_default()
        .applied(MetadataOptions::of_image(image.and_then(|image| image.imds_support)));
    let name = image.map_or("(none)", |image| image.name.as_str());
    let tree = metadata::run_tree(id, name, address, subnet);
    let metadata = metadata_config(options, tree, "{}".into(), None);
    let forwards = spec.published.iter().map(forward).collect();
    NetstackConfig { forwards, metadata: Some(metadata), ..plain(address, subnet) }
}

fn plain(address: Ipv4Addr, subnet: SubnetRange) -> NetstackConfig {
    NetstackConfig {
        address,
        prefix_length: subnet.own.prefix_len(),
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
