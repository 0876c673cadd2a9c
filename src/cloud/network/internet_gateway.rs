//! Internet gateways: EC2's `CreateInternetGateway` and the like.

use std::collections::BTreeMap;

use super::super::error::CloudError;
use super::super::{Cloud, Outcome, new_id, now, resolve};
use super::lookup::{depends, occupant};
use ec2::id::VpcId;
use ec2::{Ec2Error, ErrorCode};
use store::{InternetGatewayRecord, Meta, Transaction};

#[derive(Debug, Clone, Copy)]
pub struct InternetGateways<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl InternetGateways<'_> {
    pub fn list(&self) -> Result<Vec<InternetGatewayRecord>, CloudError> {
        self.cloud.records()
    }

    /// Creates a gateway that is attached to no VPC.
    pub fn create(&self, tags: BTreeMap<String, String>) -> Result<InternetGatewayRecord, CloudError> {
        self.cloud.store.write(|tx| insert(tx, None, tags))
    }

    /// Attaches a gateway to a VPC. Both can have only one attachment.
    pub fn attach(&self, reference: &str, vpc: &str) -> Result<Outcome<InternetGatewayRecord>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            let mut gateway = resolve::internet_gateway(tx, reference)?;
            let vpc = resolve::vpc(tx, vpc)?.meta.id;
            if let Some(other) = gateway.spec.vpc_id {
                let what = format!("resource {} is already attached to network {other}", gateway.meta.id);
                return Err(CloudError::refused(ErrorCode::ResourceAlreadyAssociated, what, None));
            }
            if attached_to(tx, vpc)?.is_some() {
                let what = format!("Network {vpc} already has an internet gateway attached");
                return Err(CloudError::refused(ErrorCode::InvalidParameterValue, what, None));
            }
            gateway.spec.vpc_id = Some(vpc);
            tx.put(&mut gateway)?;
            Ok(gateway)
        })
    }

    /// Detaches a gateway from its VPC. Fails if an instance in the VPC has a public address.
    pub fn detach(&self, reference: &str, vpc: Option<&str>) -> Result<Outcome<InternetGatewayRecord>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            let mut gateway = resolve::internet_gateway(tx, reference)?;
            let vpc = vpc.map(|vpc| resolve::vpc(tx, vpc)).transpose()?.map(|vpc| vpc.meta.id);
            let attached = gateway.spec.vpc_id.filter(|attached| vpc.is_none_or(|vpc| vpc == *attached));
            let Some(attached) = attached else {
                let network = vpc.map(|vpc| format!("network {vpc}")).unwrap_or_else(|| "a network".into());
                let what = format!("resource {} is not attached to {network}", gateway.meta.id);
                return Err(CloudError::refused(ErrorCode::GatewayNotAttached, what, None));
            };
            let user = occupant(tx, |network| network.vpc_id == attached && network.public_ip.is_some())?;
            if let Some(user) = user {
                let what = format!(
                    "Network {attached} has some mapped public address(es). Please unmap those public address(es) \
                     before detaching the gateway."
                );
                let hint = format!("The instance {} has one.", user.meta.id);
                return Err(Ec2Error::refused(ErrorCode::DependencyViolation, what, Some(hint)).into());
            }
            gateway.spec.vpc_id = None;
            tx.put(&mut gateway)?;
            Ok(gateway)
        })
    }

    /// Deletes a gateway. Routes to it become black holes.
    pub fn delete(&self, reference: &str) -> Result<InternetGatewayRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let gateway = resolve::internet_gateway(tx, reference)?;
            let id = gateway.meta.id.to_string();
            if let Some(vpc) = gateway.spec.vpc_id {
                let what = format!("The internetGateway '{id}' has dependencies and cannot be deleted.");
                let hint = format!("Detach it from {vpc} first: `wisp gateway detach {id}`.");
                return Err(Ec2Error::refused(ErrorCode::DependencyViolation, what, Some(hint)).into());
            }
            tx.remove::<InternetGatewayRecord>(&id)?;
            Ok(gateway)
        })
    }
}

pub(super) fn attached_to(tx: &Transaction, vpc: VpcId) -> Result<Option<InternetGatewayRecord>, CloudError> {
    Ok(tx.list::<InternetGatewayRecord>()?.into_iter().find(|gateway| gateway.spec.vpc_id == Some(vpc)))
}

pub(super) fn insert(
    tx: &Transaction,
    vpc_id: Option<VpcId>,
    tags: BTreeMap<String, String>,
) -> Result<InternetGatewayRecord, CloudError> {
    let meta = Meta::new(new_id(), now(), tags);
    let mut record = InternetGatewayRecord { meta, spec: store::internet_gateway::Spec { vpc_id } };
    tx.insert(&mut record)?;
    Ok(record)
}

/// Fails if a gateway is attached to the VPC.
pub(super) fn check_detached(tx: &Transaction, vpc: VpcId) -> Result<(), CloudError> {
    match attached_to(tx, vpc)? {
        Some(gateway) => Err(depends(&vpc.to_string(), &gateway.meta.id.to_string())),
        None => Ok(()),
    }
}
