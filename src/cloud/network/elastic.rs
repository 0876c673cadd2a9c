//! Elastic addresses: static public addresses that can be moved between instances.

use std::collections::BTreeMap;

use super::super::error::CloudError;
use super::super::lookup::get;
use super::super::{Cloud, Outcome, Warnings, new_id, now, resolve};
use super::address::AddressPool;
use super::internet_gateway::attached_to;
use super::pending::NetworkChange;
use ec2::state::InstanceState;
use ec2::{ErrorCode, InstanceId};
use node::host::Node;
use store::{AddressRecord, AssociationRecord, InstanceRecord, Meta, Transaction};

#[derive(Debug, Clone, Copy)]
pub struct Addresses<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Addresses<'_> {
    pub fn list(&self) -> Result<Vec<AddressRecord>, CloudError> {
        let mut addresses: Vec<AddressRecord> = self.cloud.records()?;
        addresses.sort_by_key(|address| address.status.public_ip);
        Ok(addresses)
    }

    pub fn allocate(&self, tags: BTreeMap<String, String>) -> Result<AddressRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let public_ip = AddressPool::taken(tx, self.cloud.node())?.free_public().ok_or_else(|| {
                let hint = "Release one with `wisp address release`.";
                let what = "All addresses in 127.18.0.0/16 are in use.";
                CloudError::refused(ErrorCode::InvalidIpAddressInUse, what, Some(hint.into()))
            })?;
            let mut record = AddressRecord {
                meta: Meta::new(new_id(), now(), tags.clone()),
                spec: store::address::Spec::default(),
                status: store::address::Status { public_ip },
            };
            tx.insert(&mut record)?;
            Ok(record)
        })
    }

    /// Makes an elastic address the public address of an instance. `may_move` allows taking it from another instance.
    pub fn associate(
        &self,
        reference: &str,
        instance: &str,
        may_move: bool,
    ) -> Result<Outcome<AddressRecord>, CloudError> {
        let node = self.cloud.node();
        let (record, from, to, change) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = resolve::address(tx, reference)?;
            let instance = resolve::instance(tx, instance)?;
            if instance.status.state == InstanceState::Terminated || instance.status.network.is_none() {
                let state = instance.status.state.as_str();
                return Err(instance.meta.id.incorrect_state(state, "associated with an address").into());
            }
            if let Some(network) = &instance.status.network
                && attached_to(tx, network.vpc_id)?.is_none()
            {
                let what = format!("Network {} is not attached to any internet gateway", network.vpc_id);
                let hint = "Attach one with `wisp gateway attach`.";
                return Err(CloudError::refused(ErrorCode::GatewayNotAttached, what, Some(hint.into())));
            }
            let holder = record.instance().filter(|holder| *holder != instance.meta.id);
            if let Some(holder) = holder.filter(|_| !may_move) {
                let what = format!("resource {} is already associated with {holder}.", record.meta.id);
                let hint = format!("Disassociate it first: `wisp address disassociate {}`.", record.status.public_ip);
                return Err(CloudError::refused(ErrorCode::ResourceAlreadyAssociated, what, Some(hint)));
            }
            let mut before = Vec::new();
            if let Some(holder) = holder {
                before.push(set_elastic_address(tx, holder, None, node)?);
            }
            // Release the instance's previous elastic address.
            let held = held_by(tx, instance.meta.id)?;
            for mut other in held.into_iter().filter(|other| other.meta.id != record.meta.id) {
                other.spec.association = None;
                tx.put(&mut other)?;
            }
            record.spec.association = Some(AssociationRecord { id: new_id(), instance_id: instance.meta.id });
            tx.put(&mut record)?;
            let to = set_elastic_address(tx, instance.meta.id, Some(&record), node)?;
            Ok((record, before, to, NetworkChange::begin(tx)?))
        })?;
        // Release the address on the old instance before binding it on the new one.
        let mut warnings = Warnings::default();
        for changed in from.iter().chain([&to]) {
            warnings.extend(self.cloud.interfaces().push(changed)?);
        }
        self.cloud.interfaces().finish(change)?;
        Ok(Outcome { value: record, warnings })
    }

    /// Disassociates an address. A running instance that should have a public address gets a new one.
    pub fn disassociate(&self, reference: &str) -> Result<Outcome<AddressRecord>, CloudError> {
        let (record, from, change) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = resolve::address(tx, reference)?;
            let Some(association) = record.spec.association.take() else {
                let what = format!("The address {} is not associated with an instance.", record.status.public_ip);
                return Err(CloudError::refused(ErrorCode::InvalidAssociationIdNotFound, what, None));
            };
            tx.put(&mut record)?;
            let from = set_elastic_address(tx, association.instance_id, None, self.cloud.node())?;
            Ok((record, from, NetworkChange::begin(tx)?))
        })?;
        let warnings = self.cloud.interfaces().push(&from)?;
        self.cloud.interfaces().finish(change)?;
        Ok(Outcome { value: record, warnings })
    }

    pub fn release(&self, reference: &str) -> Result<AddressRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let record = resolve::address(tx, reference)?;
            if let Some(instance) = record.instance() {
                let what = format!("Address {} is in use by {instance}.", record.status.public_ip);
                let hint = format!("Disassociate it first: `wisp address disassociate {}`.", record.status.public_ip);
                return Err(CloudError::refused(ErrorCode::InvalidIpAddressInUse, what, Some(hint)));
            }
            tx.remove::<AddressRecord>(&record.meta.id.to_string())?;
            Ok(record)
        })
    }
}

pub(crate) fn free_addresses_of(tx: &Transaction, instance: InstanceId) -> Result<(), CloudError> {
    for mut record in held_by(tx, instance)? {
        record.spec.association = None;
        tx.put(&mut record)?;
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
    if let Some(network) = &mut record.status.network {
        network.elastic_address = address.map(|address| address.meta.id);
        network.public_ip = address.map(|address| address.status.public_ip);
        if address.is_none() && record.status.state.has_machine() {
            AddressPool::taken(tx, node)?.give(network)?;
        }
        tx.put(&mut record)?;
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::home::Home;

    const INSTANCE: &str = "i-0123456789abcdef0";

    fn stopped_instance() -> InstanceRecord {
        let record = serde_json::json!({
            "meta": {"id": INSTANCE, "created": 1, "generation": 0},
            "spec": {
                "image_id": "ami-0123456789abcdef0", "key_name": null, "user_data": null, "shutdown_behavior": "stop",
                "termination_protection": false,
                "size": {"instance_type": "t3.nano", "vcpus": 1, "threads_per_core": 1, "memory_mib": 192},
            },
            "status": {
                "launch": {"reservation_id": "r-0123456789abcdef0", "launch_index": 0, "image_name": "none"},
                "state": "stopped", "state_reason": null, "launch_time": 1, "terminated": null, "block_devices": [],
                "network": {
                    "vpc_id": "vpc-0123456789abcdef0", "subnet_id": "subnet-0123456789abcdef0", "zone": "us-east-1a",
                    "private_ip": "172.31.0.4", "wants_public_ip": false,
                },
            },
        });
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn associate_replaces_association_with_same_instance() {
        let directory = tempfile::tempdir().unwrap();
        let cloud = Cloud::at(Home::at(directory.path()).unwrap()).unwrap();
        let insert = |tx: &Transaction| {
            let vpc = "vpc-0123456789abcdef0".parse().unwrap();
            super::super::internet_gateway::insert(tx, Some(vpc), BTreeMap::new())?;
            Ok::<_, CloudError>(tx.insert(&mut stopped_instance())?)
        };
        assert!(cloud.store.write(insert).is_ok());
        let [first, second] = [(); 2].map(|()| cloud.addresses().allocate(BTreeMap::new()).unwrap());
        let associate = |address: &AddressRecord| {
            cloud.addresses().associate(&address.meta.id.to_string(), INSTANCE, false).unwrap().value
        };
        let associated = [associate(&first), associate(&first)];
        assert_ne!(associated[0].spec.association, associated[1].spec.association);
        associate(&second);
        let addresses = cloud.addresses().list().unwrap();
        let holders: Vec<bool> = addresses.iter().map(|address| address.instance().is_some()).collect();
        assert_eq!(holders, [false, true]);
        let network = cloud.instances().find(INSTANCE).unwrap().status.network.unwrap();
        assert_eq!(network.elastic_address, Some(second.meta.id));
    }
}
