//! Chooses the network placement of an instance at launch: its subnet, security groups and network mode.

use std::net::Ipv4Addr;

use super::super::error::CloudError;
use super::super::resolve;
use super::lookup::default_vpc;
use super::security_group::chosen_groups;
use super::spec::NetworkSpec;
use ec2::id::SecurityGroupId;
use ec2::metadata::MetadataOptions;
use ec2::network::NetworkMode;
use ec2::{Ec2Error, ErrorCode};
use node::host::Node;
use store::{NetworkRecord, SubnetRecord, Transaction, VpcRecord};

#[derive(Debug)]
pub(crate) struct Placement {
    subnet: SubnetRecord,
    security_groups: Vec<SecurityGroupId>,
    mode: NetworkMode,
}

impl Placement {
    /// Chooses the placement that `spec` requests. The default subnet is the default VPC's in the requested zone, or in
    /// any zone if none is requested.
    pub fn choose(tx: &Transaction, node: &dyn Node, spec: &NetworkSpec) -> Result<Placement, CloudError> {
        let subnet = match &spec.subnet {
            Some(reference) => resolve::subnet(tx, reference)?,
            None => default_subnet(tx, spec)?,
        };
        if let Some(zone) = spec.zone.filter(|zone| *zone != subnet.spec.zone) {
            let rule = format!("the subnet {} is in {}.", subnet.meta.id, subnet.spec.zone);
            return Err(Ec2Error::invalid_parameter("AvailabilityZone", zone, rule).into());
        }
        if let Some(address) = spec.private_ip {
            subnet.range().check(address)?;
        }
        let is_default = tx.get::<VpcRecord>(&subnet.spec.vpc_id.to_string())?.is_some_and(|vpc| vpc.status.is_default);
        let mode = match spec.mode {
            NetworkMode::Auto if !is_default || node.check_vpc_network().is_ok() => NetworkMode::Vpc,
            NetworkMode::User if !is_default => {
                let what = "A user-mode network is available only in the default VPC.";
                let hint = "Use `--network vpc`, which is the default in other VPCs.";
                return Err(CloudError::refused(ErrorCode::InvalidParameterCombination, what, Some(hint.into())));
            }
            mode => mode,
        };
        let security_groups = chosen_groups(tx, subnet.spec.vpc_id, &spec.security_groups)?;
        Ok(Placement { subnet, security_groups, mode })
    }

    /// Returns an interface without addresses. `metadata` provides the options that `spec` omits.
    pub fn interface(&self, spec: &NetworkSpec, metadata: MetadataOptions) -> NetworkRecord {
        NetworkRecord {
            vpc_id: self.subnet.spec.vpc_id,
            subnet_id: self.subnet.meta.id,
            zone: self.subnet.spec.zone,
            private_ip: Ipv4Addr::UNSPECIFIED,
            public_ip: None,
            wants_public_ip: spec.public_ip.unwrap_or(self.subnet.spec.map_public_ip),
            elastic_address: None,
            mode: self.mode,
            published: spec.published.clone(),
            security_groups: self.security_groups.clone(),
            metadata_options: spec.metadata.unwrap_or_default().applied(metadata),
        }
    }
}

/// Copies an interface for a fork, without its addresses and published ports, which only one instance can have.
pub(crate) fn for_fork(original: Option<&NetworkRecord>) -> Option<NetworkRecord> {
    let original = original?.clone();
    Some(NetworkRecord {
        private_ip: Ipv4Addr::UNSPECIFIED,
        public_ip: None,
        elastic_address: None,
        published: Vec::new(),
        ..original
    })
}

fn default_subnet(tx: &Transaction, spec: &NetworkSpec) -> Result<SubnetRecord, CloudError> {
    let zone = spec.zone.unwrap_or_default();
    let vpc = default_vpc(tx)?;
    let mut subnets: Vec<SubnetRecord> = tx.list()?;
    subnets.retain(|subnet| subnet.spec.vpc_id == vpc.meta.id && subnet.status.default_for_zone);
    subnets.sort_by_key(|subnet| (subnet.spec.zone != zone, subnet.spec.zone));
    // If no zone was requested and the default zone's subnet was deleted, use the subnet of another zone.
    subnets.into_iter().next().filter(|subnet| spec.zone.is_none_or(|zone| zone == subnet.spec.zone)).ok_or_else(|| {
        let what = format!("There is no default subnet in {zone}.");
        let hint = "Choose a subnet with `--subnet`; `wisp subnet ls` lists them.";
        CloudError::refused(ErrorCode::MissingParameter, what, Some(hint.into()))
    })
}
