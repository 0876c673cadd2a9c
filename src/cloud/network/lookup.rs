//! Lookups that the network's services share.

use super::super::error::CloudError;
use super::super::resolve;
use ec2::state::InstanceState;
use ec2::{Ec2Error, ErrorCode};
use store::{InstanceRecord, NetworkRecord, Transaction, VpcRecord};

/// Returns all VPCs by address range, the default VPC first.
pub(super) fn all_vpcs(tx: &Transaction) -> Result<Vec<VpcRecord>, CloudError> {
    let mut vpcs: Vec<VpcRecord> = tx.list()?;
    vpcs.sort_by_key(|vpc| (!vpc.status.is_default, vpc.spec.cidr));
    Ok(vpcs)
}

pub(super) fn vpc_or_default(tx: &Transaction, reference: Option<&str>) -> Result<VpcRecord, CloudError> {
    match reference {
        Some(reference) => resolve::vpc(tx, reference),
        None => default_vpc(tx),
    }
}

pub(super) fn default_vpc(tx: &Transaction) -> Result<VpcRecord, CloudError> {
    tx.list::<VpcRecord>()?.into_iter().find(|vpc| vpc.status.is_default).ok_or_else(|| {
        let hint = "Create one with `wisp vpc create --default`, or use another VPC (see `wisp subnet ls`).";
        CloudError::refused(ErrorCode::VpcIdNotSpecified, "There is no default VPC.", Some(hint.into()))
    })
}

/// Iterates over the interfaces of instances that are not terminated.
pub(super) fn living(instances: &[InstanceRecord]) -> impl Iterator<Item = &NetworkRecord> {
    let living = instances.iter().filter(|record| record.status.state != InstanceState::Terminated);
    living.filter_map(|record| record.status.network.as_ref())
}

pub(super) fn occupant(
    tx: &Transaction,
    is_in: impl Fn(&NetworkRecord) -> bool,
) -> Result<Option<InstanceRecord>, CloudError> {
    let mut instances: Vec<InstanceRecord> = tx.list()?;
    instances.retain(|record| record.status.state != InstanceState::Terminated);
    Ok(instances.into_iter().find(|record| record.status.network.as_ref().is_some_and(&is_in)))
}

pub(super) fn depends(resource: &str, dependent: &str) -> CloudError {
    let what = match resource.split('-').next() {
        Some("vpc") => "The vpc",
        Some("subnet") => "The subnet",
        _ => "resource",
    };
    let hint = format!("Remove {dependent} first.");
    let text = format!("{what} '{resource}' has dependencies and cannot be deleted.");
    Ec2Error::refused(ErrorCode::DependencyViolation, text, Some(hint)).into()
}
