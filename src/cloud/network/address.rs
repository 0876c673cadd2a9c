//! Which addresses instances get.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::super::error::CloudError;
use crate::ec2::ErrorCode;
use crate::ec2::network::DEFAULT_SUBNET;
use crate::ec2::state::InstanceState;
use crate::store::{InstanceRecord, NetworkRecord, Transaction};

/// Public addresses: 127.18.0.1 to 127.18.255.254 of the host's loopback interface.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(127, 18, 0, 0);
const PUBLIC_COUNT: u32 = 65534;

/// The addresses that are taken, by all instances of a store.
#[derive(Debug)]
pub(in crate::cloud) struct Addresses {
    private: BTreeSet<Ipv4Addr>,
    public: BTreeSet<Ipv4Addr>,
    origin: u16,
}

impl Addresses {
    /// As they are now. `origin` is where public addresses are looked for first: different for different stores of one host.
    pub fn taken(tx: &Transaction, origin: u16) -> Result<Addresses, CloudError> {
        let mut records: Vec<InstanceRecord> = tx.list()?;
        records.retain(|record| record.state != InstanceState::Terminated);
        let networks = || records.iter().filter_map(|record| record.network.as_ref());
        let private = networks().map(|network| network.private_ip).collect();
        let public = networks().filter_map(|network| network.public_ip).collect();
        Ok(Addresses { private, public, origin })
    }

    /// Gives an interface that lacks them a private address of its own, for life, and a public one for as long as its
    /// instance runs.
    pub fn give(&mut self, network: &mut NetworkRecord) -> Result<(), CloudError> {
        if network.private_ip.is_unspecified() {
            let free = DEFAULT_SUBNET.addresses().find(|address| !self.private.contains(address));
            network.private_ip = free.ok_or_else(|| {
                CloudError::refused(
                    ErrorCode::InsufficientFreeAddressesInSubnet,
                    format!("The subnet {}/{} has no free address.", DEFAULT_SUBNET.base, DEFAULT_SUBNET.prefix_length),
                    Some("An instance that is terminated gives its address back: `wisp terminate`.".into()),
                )
            })?;
            self.private.insert(network.private_ip);
        }
        if network.public_ip.is_none() {
            let mut candidates = (0..PUBLIC_COUNT).map(|step| {
                let number = (u32::from(self.origin) + step) % PUBLIC_COUNT + 1;
                Ipv4Addr::from_bits(PUBLIC.to_bits() + number)
            });
            network.public_ip = candidates.find(|address| !self.public.contains(address));
            self.public.extend(network.public_ip);
        }
        Ok(())
    }
}

/// Takes an instance's public address back.
pub(in crate::cloud) fn take_public_address(record: &mut InstanceRecord) {
    if let Some(network) = &mut record.network {
        network.public_ip = None;
    }
}
