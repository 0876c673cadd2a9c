//! VPCs: EC2's `CreateVpc` and the like.
//!
//! A VPC is only a record until an instance is connected to it. Then a router is started for it (see `router.rs`).

use std::collections::BTreeMap;
use std::fs;

use super::super::error::CloudError;
use super::super::{Cloud, new_id, now, resolve};
use super::internet_gateway;
use super::lookup::{all_vpcs, depends, occupant};
use super::route_table::insert_main;
use super::security_group::{DEFAULT, default_group};
use ec2::ErrorCode;
use ec2::id::VpcId;
use ec2::network::{DEFAULT_VPC, SubnetRange, Zone, check_vpc_range};
use ipnet::Ipv4Net;
use store::{InternetGatewayRecord, Meta, RouteTableRecord, SecurityGroupRecord, SubnetRecord, Transaction, VpcRecord};

type Tags = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy)]
pub struct Vpcs<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Vpcs<'_> {
    /// Lists all VPCs by address range, the default VPC first.
    pub fn list(&self) -> Result<Vec<VpcRecord>, CloudError> {
        self.cloud.store.read(all_vpcs)
    }

    /// Creates a VPC with a default security group and a main route table, and without subnets.
    pub fn create(&self, cidr: Ipv4Net, tags: Tags) -> Result<VpcRecord, CloudError> {
        check_vpc_range(cidr)?;
        self.cloud.store.write(|tx| {
            let vpc = insert(tx, new_vpc(cidr, false, tags))?;
            insert_main(tx, vpc.meta.id, None)?;
            Ok(vpc)
        })
    }

    /// Creates a VPC as [`create`](Self::create) does, with an internet gateway and a default route to it. The gateway
    /// has the VPC's tags.
    pub fn create_with_gateway(&self, cidr: Ipv4Net, tags: Tags) -> Result<VpcRecord, CloudError> {
        check_vpc_range(cidr)?;
        self.cloud.store.write(|tx| insert_with_gateway(tx, new_vpc(cidr, false, tags)))
    }

    /// Creates the default VPC with a subnet in each zone. Fails if there is a default VPC already.
    pub fn create_default(&self) -> Result<VpcRecord, CloudError> {
        self.cloud.store.write(|tx| {
            if let Some(vpc) = tx.list::<VpcRecord>()?.into_iter().find(|vpc| vpc.status.is_default) {
                let what = format!("A default VPC already exists: {}.", vpc.meta.id);
                return Err(CloudError::refused(ErrorCode::DefaultVpcAlreadyExists, what, None));
            }
            let vpc = insert_with_gateway(tx, new_vpc(DEFAULT_VPC, true, Tags::new()))?;
            for zone in Zone::ALL {
                let SubnetRange { own, vpc: vpc_cidr } = SubnetRange::default_in(zone);
                tx.insert(&mut SubnetRecord {
                    meta: Meta::new(new_id(), now(), Tags::new()),
                    spec: store::subnet::Spec { vpc_id: vpc.meta.id, cidr: own, zone, map_public_ip: true },
                    status: store::subnet::Status { vpc_cidr, default_for_zone: true },
                })?;
            }
            Ok(vpc)
        })
    }

    /// Deletes a VPC with its default security group, main route table and default subnets, and the gateway of the
    /// default VPC. Fails if the VPC contains anything else.
    pub fn delete(&self, reference: &str) -> Result<VpcRecord, CloudError> {
        let vpc = self.cloud.store.write::<_, CloudError>(|tx| {
            let vpc = resolve::vpc(tx, reference)?;
            let id = vpc.meta.id;
            let mut subnets: Vec<SubnetRecord> = tx.list()?;
            let mut groups: Vec<SecurityGroupRecord> = tx.list()?;
            subnets.retain(|subnet| subnet.spec.vpc_id == id);
            groups.retain(|group| group.spec.vpc_id == id);
            let instance = occupant(tx, |network| network.vpc_id == id)?.map(|record| record.meta.id.to_string());
            let subnet =
                subnets.iter().find(|subnet| !subnet.status.default_for_zone).map(|subnet| subnet.meta.id.to_string());
            let group = groups.iter().find(|group| group.spec.name != DEFAULT).map(|group| group.meta.id.to_string());
            if let Some(dependent) = instance.or(subnet).or(group) {
                return Err(depends(&id.to_string(), &dependent));
            }
            delete_routes(tx, &vpc)?;
            subnets.iter().try_for_each(|subnet| tx.remove::<SubnetRecord>(&subnet.meta.id.to_string()))?;
            groups.iter().try_for_each(|group| tx.remove::<SecurityGroupRecord>(&group.meta.id.to_string()))?;
            tx.remove::<VpcRecord>(&id.to_string())?;
            Ok(vpc)
        })?;
        self.sweep_directories()?;
        Ok(vpc)
    }

    /// Removes the directories of deleted VPCs, which contain the logs of their routers.
    pub(crate) fn sweep_directories(&self) -> Result<(), CloudError> {
        let dir = self.cloud.home.networks();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(CloudError::file(&dir, "read"))?,
        };
        let vpcs: Vec<VpcRecord> = self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.list_whole()?))?;
        for entry in entries {
            let path = entry.map_err(CloudError::file(&dir, "read"))?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<VpcId>().ok());
            if id.is_some_and(|id| vpcs.iter().all(|vpc| vpc.meta.id != id)) {
                fs::remove_dir_all(&path).map_err(CloudError::file(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

fn insert(tx: &Transaction, mut vpc: VpcRecord) -> Result<VpcRecord, CloudError> {
    tx.insert(&mut vpc)?;
    default_group(tx, vpc.meta.id)?;
    Ok(vpc)
}

fn insert_with_gateway(tx: &Transaction, vpc: VpcRecord) -> Result<VpcRecord, CloudError> {
    let vpc = insert(tx, vpc)?;
    let gateway = internet_gateway::insert(tx, Some(vpc.meta.id), vpc.meta.tags.clone())?;
    insert_main(tx, vpc.meta.id, Some(gateway.meta.id))?;
    Ok(vpc)
}

/// Deletes the main route table of a VPC. Fails if there is another one, or if a gateway is attached. The gateway of the
/// default VPC is deleted, too.
fn delete_routes(tx: &Transaction, vpc: &VpcRecord) -> Result<(), CloudError> {
    let id = vpc.meta.id;
    let mut tables: Vec<RouteTableRecord> = tx.list()?;
    tables.retain(|table| table.spec.vpc_id == id);
    if let Some(table) = tables.iter().find(|table| !table.is_main()) {
        return Err(depends(&id.to_string(), &table.meta.id.to_string()));
    }
    match internet_gateway::attached_to(tx, id)?.filter(|_| vpc.status.is_default) {
        Some(gateway) => tx.remove::<InternetGatewayRecord>(&gateway.meta.id.to_string())?,
        None => internet_gateway::check_detached(tx, id)?,
    }
    Ok(tables.iter().try_for_each(|table| tx.remove::<RouteTableRecord>(&table.meta.id.to_string()))?)
}

fn new_vpc(cidr: Ipv4Net, is_default: bool, tags: Tags) -> VpcRecord {
    VpcRecord {
        meta: Meta::new(new_id(), now(), tags),
        spec: store::vpc::Spec { cidr },
        status: store::vpc::Status { is_default },
    }
}
