//! Elastic addresses: static public addresses that can be moved between instances.

use std::collections::BTreeMap;

use super::super::error::CloudError;
use super::super::lookup::get;
use super::super::{Cloud, new_id, resolve};
use super::address::AddressPool;
use ec2::state::InstanceState;
use ec2::{ErrorCode, InstanceId};
use node::host::Node;
use store::{AddressRecord, AssociationRecord, InstanceRecord, Transaction};

#[derive(Debug, Clone, Copy)]
pub struct Addresses<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Addresses<'_> {
    pub fn list(&self) -> Result<Vec<AddressRecord>, CloudError> {
        let mut addresses: Vec<AddressRecord> = self.cloud.records()?;
        addresses.sort_by_key(|address| address.public_ip);
        Ok(addresses)
    }

    pub fn allocate(&self, tags: BTreeMap<String, String>) -> Result<AddressRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let public_ip = AddressPool::taken(tx, self.cloud.node())?.free_public().ok_or_else(|| {
                let hint = "Release one with `wisp address release`.";
                let what = "All addresses in 127.18.0.0/16 are in use.";
                CloudError::refused(ErrorCode::InvalidIpAddressInUse, what, Some(hint.into()))
            })?;
            let record = AddressRecord { id: new_id(), public_ip, association: None, tags: tags.clone() };
            tx.insert(&record)?;
            Ok(record)
        })
    }

    /// Makes an elastic address the public address of an instance. `may_move` allows taking it from another instance.
    pub fn associate(&self, reference: &str, instance: &str, may_move: bool) -> Result<AddressRecord, CloudError> {
        let node = self.cloud.node();
        let (record, from, to) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = resolve::address(tx, reference)?;
            let instance = resolve::instance(tx, instance)?;
            if instance.state == InstanceState::Terminated || instance.network.is_none() {
                let state = instance.state.as_str();
                return Err(instance.id.incorrect_state(state, "associated with an address").into());
            }
            let holder = record.instance().filter(|holder| *holder != instance.id);
            if let Some(holder) = holder.filter(|_| !may_move) {
                let what = format!("resource {} is already associated with {holder}.", record.id);
                let hint = format!("Disassociate it first: `wisp address disassociate {}`.", record.public_ip);
                return Err(CloudError::refused(ErrorCode::ResourceAlreadyAssociated, what, Some(hint)));
            }
            let mut before = Vec::new();
            if let Some(holder) = holder {
                before.push(set_elastic_address(tx, holder, None, node)?);
            }
            // Release the instance's previous elastic address.
            for mut other in held_by(tx, instance.id)? {
                other.association = None;
                tx.put(&other)?;
            }
            record.association = Some(AssociationRecord { id: new_id(), instance_id: instance.id });
            tx.put(&record)?;
            Ok((record.clone(), before, set_elastic_address(tx, instance.id, Some(&record), node)?))
        })?;
        // Release the address on the old instance before binding it on the new one.
        from.iter().chain([&to]).try_for_each(|changed| self.cloud.interfaces().push(changed))?;
        Ok(record)
    }

    /// Disassociates an address. A running instance that should have a public address gets a new one.
    pub fn disassociate(&self, reference: &str) -> Result<AddressRecord, CloudError> {
        let (record, from) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = resolve::address(tx, reference)?;
            let Some(association) = record.association.take() else {
                let what = format!("The address {} is not associated with an instance.", record.public_ip);
                return Err(CloudError::refused(ErrorCode::InvalidAssociationIdNotFound, what, None));
            };
            tx.put(&record)?;
            Ok((record, set_elastic_address(tx, association.instance_id, None, self.cloud.node())?))
        })?;
        self.cloud.interfaces().push(&from)?;
        Ok(record)
    }

    pub fn release(&self, reference: &str) -> Result<AddressRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let record = resolve::address(tx, reference)?;
            if let Some(instance) = record.instance() {
                let what = format!("Address {} is in use by {instance}.", record.public_ip);
                let hint = format!("Disassociate it first: `wisp address disassociate {}`.", record.public_ip);
                return Err(CloudError::refused(ErrorCode::InvalidIpAddressInUse, what, Some(hint)));
            }
            tx.remove::<AddressRecord>(&record.id.to_string())?;
            Ok(record)
        })
    }
}

pub(crate) fn free_addresses_of(tx: &Transaction, instance: InstanceId) -> Result<(), CloudError> {
    for record in held_by(tx, instance)? {
        tx.put(&AddressRecord { association: None, ..record })?;
    }
    Ok(())
}

fn held_by(tx: &Transaction, instance: InstanceId) -> Result<Vec<AddressRecord>, CloudError> {
    let mut records: Vec<AddressRecord> = tx.list()?;
    records.retain(|record| record.instance() == Some(instance));
    Ok(records)
}

/// Sets or removes an instance's elastic address. A running instance that loses it, and that should have a public
/// address, gets a new one.
fn set_elastic_address(
    tx: &Transaction,
    instance: InstanceId,
    address: Option<&AddressRecord>,
    node: &dyn Node,
) -> Result<InstanceRecord, CloudError> {
    let mut record = get(tx, instance)?;
    if let Some(network) = &mut record.network {
        network.elastic_address = address.map(|address| address.id);
        network.public_ip = address.map(|address| address.public_ip);
        if address.is_none() && record.state.has_machine() {
            AddressPool::taken(tx, node)?.give(network)?;
        }
        tx.put(&record)?;
    }
    Ok(record)
}
