//! VPCs and subnets: EC2's `CreateVpc`, `CreateSubnet` and the like.
//!
//! A VPC is only a record until an instance is connected to it. Then a router is started for it (see `router.rs`).

use std::collections::BTreeMap;
use std::fs;

use super::super::error::CloudError;
use super::super::{Cloud, new_id, resolve};
use super::security_group::{DEFAULT, default_group};
use ec2::id::VpcId;
use ec2::network::{DEFAULT_VPC, SubnetRange, Zone, check_subnet_range, check_vpc_range};
use ec2::state::InstanceState;
use ec2::{Ec2Error, ErrorCode};
use ipnet::Ipv4Net;
use store::{InstanceRecord, NetworkRecord, SecurityGroupRecord, SubnetRecord, Transaction, VpcRecord};

type Tags = BTreeMap<String, String>;

#[derive(Debug, Clone)]
pub struct SubnetSpec {
    /// ID or name of the VPC. The default is the default VPC.
    pub vpc: Option<String>,
    pub cidr: Ipv4Net,
    pub zone: Zone,
    /// True if instances in the subnet get a public address by default.
    pub map_public_ip: bool,
    pub tags: Tags,
}

impl Cloud {
    /// Lists all VPCs by address range, the default VPC first.
    pub fn vpcs(&mut self) -> Result<Vec<VpcRecord>, CloudError> {
        let mut vpcs: Vec<VpcRecord> = self.store.read::<_, CloudError>(|tx| Ok(tx.list()?))?;
        vpcs.sort_by_key(|vpc| (!vpc.is_default, vpc.cidr));
        Ok(vpcs)
    }

    /// Lists all subnets in the order of their VPCs and address ranges, default subnets first.
    pub fn subnets(&mut self) -> Result<Vec<SubnetRecord>, CloudError> {
        let mut subnets: Vec<SubnetRecord> = self.store.read::<_, CloudError>(|tx| Ok(tx.list()?))?;
        subnets.sort_by_key(|subnet| (!subnet.default_for_zone, subnet.vpc_id, subnet.cidr));
        Ok(subnets)
    }

    pub fn vpc(&mut self, reference: &str) -> Result<VpcRecord, CloudError> {
        self.store.read(|tx| resolve::vpc(tx, reference))
    }

    /// Creates a VPC with a default security group and without subnets.
    pub fn create_vpc(&mut self, cidr: Ipv4Net, tags: Tags) -> Result<VpcRecord, CloudError> {
        check_vpc_range(cidr)?;
        self.store.write(|tx| {
            let vpc = VpcRecord { id: new_id(), cidr, is_default: false, tags: tags.clone() };
            tx.insert(&vpc)?;
            default_group(tx, vpc.id)?;
            Ok(vpc)
        })
    }

    /// Creates the default VPC with a subnet in each zone. Fails if there is a default VPC already.
    pub fn create_default_vpc(&mut self) -> Result<VpcRecord, CloudError> {
        self.store.write(|tx| {
            if let Some(vpc) = tx.list::<VpcRecord>()?.into_iter().find(|vpc| vpc.is_default) {
                let what = format!("A default VPC already exists: {}.", vpc.id);
                return Err(CloudError::refused(ErrorCode::DefaultVpcAlreadyExists, what, None));
            }
            let vpc = VpcRecord { id: new_id(), cidr: DEFAULT_VPC, is_default: true, tags: Tags::new() };
            tx.insert(&vpc)?;
            default_group(tx, vpc.id)?;
            for zone in Zone::ALL {
                let SubnetRange { own, vpc: vpc_cidr } = SubnetRange::default_in(zone);
                tx.insert(&SubnetRecord {
                    id: new_id(),
                    vpc_id: vpc.id,
                    vpc_cidr,
                    cidr: own,
                    zone,
                    default_for_zone: true,
                    map_public_ip: true,
                    tags: Tags::new(),
                })?;
            }
            Ok(vpc)
        })
    }

    /// Deletes a VPC with its default security group and default subnets. Fails if the VPC contains anything else.
    pub fn delete_vpc(&mut self, reference: &str) -> Result<VpcRecord, CloudError> {
        let vpc = self.store.write::<_, CloudError>(|tx| {
            let vpc = resolve::vpc(tx, reference)?;
            let id = vpc.id;
            let subnets: Vec<SubnetRecord> = tx.list()?;
            let groups: Vec<SecurityGroupRecord> = tx.list()?;
            let subnets: Vec<SubnetRecord> = subnets.into_iter().filter(|subnet| subnet.vpc_id == id).collect();
            let groups: Vec<SecurityGroupRecord> = groups.into_iter().filter(|group| group.vpc_id == id).collect();
            let instance = occupant(tx, |network| network.vpc_id == id)?.map(|record| record.id.to_string());
            let subnet = subnets.iter().find(|subnet| !subnet.default_for_zone).map(|subnet| subnet.id.to_string());
            let group = groups.iter().find(|group| group.name != DEFAULT).map(|group| group.id.to_string());
            if let Some(dependent) = instance.or(subnet).or(group) {
                return Err(depends(&id.to_string(), &dependent));
            }
            subnets.iter().try_for_each(|subnet| tx.remove::<SubnetRecord>(&subnet.id.to_string()))?;
            groups.iter().try_for_each(|group| tx.remove::<SecurityGroupRecord>(&group.id.to_string()))?;
            tx.remove::<VpcRecord>(&id.to_string())?;
            Ok(vpc)
        })?;
        self.sweep_networks()?;
        Ok(vpc)
    }

    pub fn create_subnet(&mut self, spec: &SubnetSpec) -> Result<SubnetRecord, CloudError> {
        self.store.write(|tx| {
            let vpc = vpc_or_default(tx, spec.vpc.as_deref())?;
            let others: Vec<SubnetRecord> = tx.list()?;
            let others = others.iter().filter(|other| other.vpc_id == vpc.id).map(|other| other.cidr);
            check_subnet_range(spec.cidr, vpc.cidr, others)?;
            let subnet = SubnetRecord {
                id: new_id(),
                vpc_id: vpc.id,
                vpc_cidr: vpc.cidr,
                cidr: spec.cidr,
                zone: spec.zone,
                default_for_zone: false,
                map_public_ip: spec.map_public_ip,
                tags: spec.tags.clone(),
            };
            tx.insert(&subnet)?;
            Ok(subnet)
        })
    }

    /// Sets whether instances that are launched into the subnet from now on get a public address by default.
    pub fn map_public_ip(&mut self, reference: &str, map_public_ip: bool) -> Result<SubnetRecord, CloudError> {
        self.store.write(|tx| {
            let subnet = SubnetRecord { map_public_ip, ..resolve::subnet(tx, reference)? };
            tx.put(&subnet)?;
            Ok(subnet)
        })
    }

    pub fn delete_subnet(&mut self, reference: &str) -> Result<SubnetRecord, CloudError> {
        self.store.write(|tx| {
            let subnet = resolve::subnet(tx, reference)?;
            if let Some(instance) = occupant(tx, |network| network.subnet_id == subnet.id)? {
                return Err(depends(&subnet.id.to_string(), &instance.id.to_string()));
            }
            tx.remove::<SubnetRecord>(&subnet.id.to_string())?;
            Ok(subnet)
        })
    }

    /// Returns the number of free addresses of each subnet, in the given order.
    pub fn free_addresses(&mut self, subnets: &[SubnetRecord]) -> Result<Vec<usize>, CloudError> {
        let instances = self.all_instances()?;
        let taken = |subnet: &SubnetRecord| living(&instances).filter(|network| network.subnet_id == subnet.id).count();
        Ok(subnets.iter().map(|subnet| subnet.range().addresses().count().saturating_sub(taken(subnet))).collect())
    }

    /// Removes the directories of deleted VPCs, which contain the logs of their routers.
    pub(crate) fn sweep_networks(&mut self) -> Result<(), CloudError> {
        let dir = self.home.networks();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(CloudError::file(&dir, "read"))?,
        };
        let vpcs: Vec<VpcRecord> = self.store.read::<_, CloudError>(|tx| Ok(tx.list_whole()?))?;
        for entry in entries {
            let path = entry.map_err(CloudError::file(&dir, "read"))?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<VpcId>().ok());
            if id.is_some_and(|id| vpcs.iter().all(|vpc| vpc.id != id)) {
                fs::remove_dir_all(&path).map_err(CloudError::file(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

pub(super) fn vpc_or_default(tx: &Transaction, reference: Option<&str>) -> Result<VpcRecord, CloudError> {
    match reference {
        Some(reference) => resolve::vpc(tx, reference),
        None => default_vpc(tx),
    }
}

pub(super) fn default_vpc(tx: &Transaction) -> Result<VpcRecord, CloudError> {
    tx.list::<VpcRecord>()?.into_iter().find(|vpc| vpc.is_default).ok_or_else(|| {
        let hint = "Create one with `wisp vpc create --default`, or use another VPC (see `wisp subnet ls`).";
        CloudError::refused(ErrorCode::VpcIdNotSpecified, "There is no default VPC.", Some(hint.into()))
    })
}

/// Iterates over the interfaces of instances that are not terminated.
pub(super) fn living(instances: &[InstanceRecord]) -> impl Iterator<Item = &NetworkRecord> {
    let living = instances.iter().filter(|record| record.state != InstanceState::Terminated);
    living.filter_map(|record| record.network.as_ref())
}

fn occupant(tx: &Transaction, is_in: impl Fn(&NetworkRecord) -> bool) -> Result<Option<InstanceRecord>, CloudError> {
    let mut instances: Vec<InstanceRecord> = tx.list()?;
    instances.retain(|record| record.state != InstanceState::Terminated);
    Ok(instances.into_iter().find(|record| record.network.as_ref().is_some_and(&is_in)))
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
