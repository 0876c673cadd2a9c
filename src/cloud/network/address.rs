//! Which addresses instances get.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::super::error::CloudError;
use super::chosen_groups;
use crate::ec2::ErrorCode;
use crate::ec2::network::DEFAULT_SUBNET;
use crate::ec2::state::InstanceState;
use crate::store::{InstanceRecord, NetworkRecord, Transaction};

/// Public addresses: 127.18.0.1 to 127.18.255.254 of the host's loopback interface.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(127, 18, 0, 0);
const PUBLIC_COUNT: u32 = 65534;

/// Gives an instance that is new to the store a private address of its own, for life, and a public one for as long as it
/// runs. `origin` is where public addresses are looked for first: different for different stores of one host.
pub(in crate::cloud) fn give_addresses(
    tx: &Transaction,
    record: &mut InstanceRecord,
    origin: u16,
) -> Result<(), CloudError> {
    let Some(network) = &mut record.network else { return Ok(()) };
    let id = record.id;
    let others: Vec<InstanceRecord> = tx.list()?;
    let others = others.iter().filter(|other| other.id != id && other.state != InstanceState::Terminated);
    let networks: Vec<&NetworkRecord> = others.filter_map(|other| other.network.as_ref()).collect();
    if network.security_groups.is_empty() {
        network.security_groups = chosen_groups(tx, &[])?;
    }
    if network.private_ip.is_unspecified() {
        let taken: BTreeSet<Ipv4Addr> = networks.iter().map(|network| network.private_ip).collect();
        let free = DEFAULT_SUBNET.addresses().find(|address| !taken.contains(address));
        network.private_ip = free.ok_or_else(|| {
            CloudError::refused(
                ErrorCode::InsufficientFreeAddressesInSubnet,
                format!("The subnet {}/{} has no free address.", DEFAULT_SUBNET.base, DEFAULT_SUBNET.prefix_length),
                Some("An instance that is terminated gives its address back: `wisp terminate`.".into()),
            )
        })?;
    }
    if network.public_ip.is_none() {
        let taken: BTreeSet<Ipv4Addr> = networks.iter().filter_map(|network| network.public_ip).collect();
        let candidates = (0..PUBLIC_COUNT).map(|step| {
            let number = (u32::from(origin) + step) % PUBLIC_COUNT + 1;
            Ipv4Addr::from_bits(PUBLIC.to_bits() + number)
        });
        network.public_ip = candidates.into_iter().find(|address| !taken.contains(address));
    }
    Ok(())
}

/// Takes an instance's public address back.
pub(in crate::cloud) fn take_public_address(record: &mut InstanceRecord) {
    if let Some(network) = &mut record.network {
        network.public_ip = None;
    }
}
