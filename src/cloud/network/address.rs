//! Assigns private and public IP addresses to instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::super::error::CloudError;
use super::lookup::living;
use ec2::ErrorCode;
use ec2::id::{SubnetId, VpcId};
use ec2::network::SubnetRange;
use node::host::Node;
use store::{AddressRecord, InstanceRecord, NetworkRecord, SubnetRecord, Transaction};

/// Public addresses: 127.18.0.1 to 127.18.255.254 on the host's loopback interface.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(127, 18, 0, 0);
const PUBLIC_COUNT: u32 = 65534;

#[derive(Debug)]
pub(crate) struct AddressPool {
    private: BTreeSet<(VpcId, Ipv4Addr)>,
    public: BTreeSet<Ipv4Addr>,
    subnets: BTreeMap<SubnetId, SubnetRange>,
    /// The number at which the search for a free public address starts.
    origin: u16,
}

impl AddressPool {
    /// Reads the addresses in use.
    pub fn taken(tx: &Transaction, node: &dyn Node) -> Result<AddressPool, CloudError> {
        let records: Vec<InstanceRecord> = tx.list()?;
        let private = living(&records).map(|network| (network.vpc_id, network.private_ip)).collect();
        let elastic = tx.list::<AddressRecord>()?.into_iter().map(|address| address.status.public_ip);
        let public = living(&records).filter_map(|network| network.public_ip).chain(elastic).collect();
        let subnets = tx.list::<SubnetRecord>()?.into_iter().map(|subnet| (subnet.meta.id, subnet.range())).collect();
        Ok(AddressPool { private, public, subnets, origin: node.address_origin() })
    }

    /// Assigns the requested private address to a new interface. Fails if the address is in use.
    pub fn claim(&mut self, network: &mut NetworkRecord, address: Ipv4Addr) -> Result<(), CloudError> {
        if !self.private.insert((network.vpc_id, address)) {
            let what = format!("Address {address} is in use.");
            return Err(CloudError::refused(ErrorCode::InvalidIpAddressInUse, what, None));
        }
        network.private_ip = address;
        Ok(())
    }

    /// Assigns missing addresses to an interface: a private one for its lifetime and, if one is requested and free, a
    /// public one until its instance stops.
    pub fn give(&mut self, network: &mut NetworkRecord) -> Result<(), CloudError> {
        if network.private_ip.is_unspecified() {
            network.private_ip = self.free_private(network)?;
            self.private.insert((network.vpc_id, network.private_ip));
        }
        if network.public_ip.is_none() && network.wants_public_ip {
            network.public_ip = self.free_public();
            self.public.extend(network.public_ip);
        }
        Ok(())
    }

    pub fn free_public(&self) -> Option<Ipv4Addr> {
        let mut candidates = (0..PUBLIC_COUNT).map(|step| {
            let number = (u32::from(self.origin) + step) % PUBLIC_COUNT + 1;
            Ipv4Addr::from_bits(PUBLIC.to_bits() + number)
        });
        candidates.find(|address| !self.public.contains(address))
    }

    fn free_private(&self, network: &NetworkRecord) -> Result<Ipv4Addr, CloudError> {
        let subnet = self.subnets.get(&network.subnet_id).ok_or_else(|| {
            let given = network.subnet_id.to_string();
            CloudError::from(SubnetId::not_found(&given))
        })?;
        let free = subnet.addresses().find(|address| !self.private.contains(&(network.vpc_id, *address)));
        free.ok_or_else(|| {
            CloudError::refused(
                ErrorCode::InsufficientFreeAddressesInSubnet,
                format!("The subnet {} ({}) has no free address.", network.subnet_id, subnet.own),
                Some("Terminate an instance to free its address: `wisp terminate`.".into()),
            )
        })
    }
}

/// Releases an instance's public address, unless it is an elastic one.
pub(crate) fn take_public_address(record: &mut InstanceRecord) {
    if let Some(network) = record.status.network.as_mut().filter(|network| network.elastic_address.is_none()) {
        network.public_ip = None;
    }
}
