//! Subnets: EC2's `CreateSubnet` and the like.

use std::collections::BTreeMap;

use super::super::error::CloudError;
use super::super::{Cloud, new_id, now, resolve};
use super::lookup::{depends, living, occupant, vpc_or_default};
use super::route_table::forget_subnet;
use ec2::network::{Zone, check_subnet_range};
use ipnet::Ipv4Net;
use store::{InstanceRecord, Meta, SubnetRecord};

#[derive(Debug, Clone)]
pub struct SubnetSpec {
    /// ID or name of the VPC. The default is the default VPC.
    pub vpc: Option<String>,
    pub cidr: Ipv4Net,
    pub zone: Zone,
    /// True if instances in the subnet get a public address by default.
    pub map_public_ip: bool,
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Subnets<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Subnets<'_> {
    /// Lists all subnets in the order of their VPCs and address ranges, default subnets first.
    pub fn list(&self) -> Result<Vec<SubnetRecord>, CloudError> {
        let mut subnets: Vec<SubnetRecord> = self.cloud.records()?;
        subnets.sort_by_key(|subnet| (!subnet.status.default_for_zone, subnet.spec.vpc_id, subnet.spec.cidr));
        Ok(subnets)
    }

    pub fn create(&self, spec: &SubnetSpec) -> Result<SubnetRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let vpc = vpc_or_default(tx, spec.vpc.as_deref())?;
            let others: Vec<SubnetRecord> = tx.list()?;
            let others = others.iter().filter(|other| other.spec.vpc_id == vpc.meta.id).map(|other| other.spec.cidr);
            check_subnet_range(spec.cidr, vpc.spec.cidr, others)?;
            let mut subnet = SubnetRecord {
                meta: Meta::new(new_id(), now(), spec.tags.clone()),
                spec: store::subnet::Spec {
                    vpc_id: vpc.meta.id,
                    cidr: spec.cidr,
                    zone: spec.zone,
                    map_public_ip: spec.map_public_ip,
                },
                status: store::subnet::Status { vpc_cidr: vpc.spec.cidr, default_for_zone: false },
            };
            tx.insert(&mut subnet)?;
            Ok(subnet)
        })
    }

    /// Sets whether instances that are launched into the subnet from now on get a public address by default.
    pub fn map_public_ip(&self, reference: &str, map_public_ip: bool) -> Result<SubnetRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let mut subnet = resolve::subnet(tx, reference)?;
            subnet.spec.map_public_ip = map_public_ip;
            tx.put(&mut subnet)?;
            Ok(subnet)
        })
    }

    pub fn delete(&self, reference: &str) -> Result<SubnetRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let subnet = resolve::subnet(tx, reference)?;
            if let Some(instance) = occupant(tx, |network| network.subnet_id == subnet.meta.id)? {
                return Err(depends(&subnet.meta.id.to_string(), &instance.meta.id.to_string()));
            }
            forget_subnet(tx, &subnet)?;
            tx.remove::<SubnetRecord>(&subnet.meta.id.to_string())?;
            Ok(subnet)
        })
    }

    /// Returns the number of free addresses of each subnet, in the given order.
    pub fn free_addresses(&self, subnets: &[SubnetRecord]) -> Result<Vec<usize>, CloudError> {
        let instances = self.cloud.records::<InstanceRecord>()?;
        let taken =
            |subnet: &SubnetRecord| living(&instances).filter(|network| network.subnet_id == subnet.meta.id).count();
        Ok(subnets.iter().map(|subnet| subnet.range().addresses().count().saturating_sub(taken(subnet))).collect())
    }
}
