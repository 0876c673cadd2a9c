//! Elastic addresses.

use std::net::Ipv4Addr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::network_interfaces::instance_of;
use super::resource::{Listed, combination, id, missing, not_found};
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::shapes;
use ec2::Ec2Error;
use ec2::id::{Allocation, AllocationId, Association, AssociationId, Instance};
use store::AddressRecord;

const ADDRESSES: Listed = Listed {
    list: "Addresses",
    id: "AllocationId",
    filters: &[
        ("allocation-id", "AllocationId"),
        ("association-id", "AssociationId"),
        ("domain", "Domain"),
        ("instance-id", "InstanceId"),
        ("network-border-group", "NetworkBorderGroup"),
        ("network-interface-id", "NetworkInterfaceId"),
        ("network-interface-owner-id", "NetworkInterfaceOwnerId"),
        ("private-ip-address", "PrivateIpAddress"),
        ("public-ip", "PublicIp"),
    ],
};

const ATTRIBUTES: Listed = Listed { list: "Addresses", id: "AllocationId", filters: &[] };

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeAddresses {
    allocation_ids: Vec<String>,
    public_ips: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeAddresses, listing: Listing) -> Result<Value, ApiError> {
    let mut ids = input.allocation_ids;
    for public_ip in &input.public_ips {
        ids.push(by_public_ip(context, public_ip)?.meta.id.to_string());
    }
    let instances = context.cloud.instances().list()?;
    let mut addresses = Vec::new();
    for record in context.cloud.addresses().list()? {
        let mut address = super::respond(shapes::address(&record))?;
        let holder = instances.iter().find(|instance| Some(instance.meta.id) == record.instance());
        if let Some(network) = holder.and_then(|instance| instance.status.network.as_ref()) {
            address["PrivateIpAddress"] = json!(network.private_ip);
        }
        addresses.push(address);
    }
    let mut response = ADDRESSES.respond::<Allocation>(addresses, &ids, listing)?;
    // This action has no pages.
    response.as_object_mut().and_then(|members| members.remove("NextToken"));
    Ok(response)
}

fn by_public_ip(context: &Context, public_ip: &str) -> Result<AddressRecord, ApiError> {
    let address: Option<Ipv4Addr> = public_ip.parse().ok();
    let found = context.cloud.addresses().list()?.into_iter().find(|known| Some(known.status.public_ip) == address);
    found.ok_or_else(|| not_found("InvalidAddress.NotFound", "address", public_ip))
}

fn by_id(context: &Context, text: &str) -> Result<AddressRecord, ApiError> {
    let id: AllocationId = id::<Allocation>(text)?;
    let found = context.cloud.addresses().list()?.into_iter().find(|known| known.meta.id == id);
    found.ok_or_else(|| AllocationId::not_found(text).into())
}

/// Returns the address that a request names by its allocation ID or by its IP address.
fn find(context: &Context, allocation: Option<&str>, public_ip: Option<&str>) -> Result<AddressRecord, ApiError> {
    match (allocation, public_ip) {
        (Some(_), Some(_)) => Err(combination("The parameters AllocationId and PublicIp cannot be used together.")),
        (Some(id), None) => by_id(context, id),
        (None, Some(public_ip)) => by_public_ip(context, public_ip),
        (None, None) => Err(missing("AllocationId")),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeAddressesAttribute {
    allocation_ids: Vec<String>,
    #[serde(rename = "Attribute")]
    _attribute: Option<String>,
}

/// Lists addresses for their attributes. No address has a reverse DNS record, the only attribute.
pub fn attributes(context: &Context, input: DescribeAddressesAttribute, listing: Listing) -> Result<Value, ApiError> {
    let addresses = context.cloud.addresses().list()?;
    let shape = |record: &AddressRecord| json!({"AllocationId": record.meta.id, "PublicIp": record.status.public_ip});
    ATTRIBUTES.respond::<Allocation>(addresses.iter().map(shape).collect(), &input.allocation_ids, listing)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AllocateAddress {
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

pub fn allocate(context: &Context, input: AllocateAddress) -> Result<Value, ApiError> {
    let tags = tags_for("elastic-ip", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let address = super::respond(shapes::address(&context.cloud.addresses().allocate(tags)?))?;
    let members = ["AllocationId", "Domain", "NetworkBorderGroup", "PublicIp", "PublicIpv4Pool"];
    Ok(members.iter().map(|member| ((*member).to_string(), address[*member].clone())).collect())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AssociateAddress {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    private_ip_address: Option<String>,
    allow_reassociation: Option<bool>,
    dry_run: bool,
}

pub fn associate(context: &Context, input: AssociateAddress) -> Result<Value, ApiError> {
    let address = find(context, input.allocation_id.as_deref(), input.public_ip.as_deref())?;
    let instance = match (&input.instance_id, &input.network_interface_id) {
        (Some(_), Some(_)) => {
            return Err(combination("The parameters InstanceId and NetworkInterfaceId cannot be used together."));
        }
        (Some(given), None) => context.cloud.instances().find(&id::<Instance>(given)?.to_string())?,
        (None, Some(interface)) => instance_of(context, interface)?,
        (None, None) => return Err(missing("InstanceId or NetworkInterfaceId")),
    };
    let private_ip = instance.status.network.as_ref().map(|network| network.private_ip.to_string());
    if let Some(other) = input.private_ip_address.filter(|given| Some(given) != private_ip.as_ref()) {
        let other: String = other.chars().take(100).collect();
        let rule = format!("it is not the private address of {}.", instance.meta.id);
        return Err(Ec2Error::invalid_parameter("PrivateIpAddress", other, rule).into());
    }
    check_dry_run(input.dry_run)?;
    // In a VPC, EC2 moves an associated address unless the request forbids it.
    let may_move = input.allow_reassociation.unwrap_or(true);
    let addresses = context.cloud.addresses();
    let associated = addresses.associate(&address.meta.id.to_string(), &instance.meta.id.to_string(), may_move)?;
    let record = super::report(associated);
    Ok(json!({"AssociationId": record.spec.association.map(|association| association.id)}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisassociateAddress {
    association_id: Option<String>,
    public_ip: Option<String>,
    dry_run: bool,
}

pub fn disassociate(context: &Context, input: DisassociateAddress) -> Result<Value, ApiError> {
    let address = match (&input.association_id, &input.public_ip) {
        (Some(_), Some(_)) => {
            return Err(combination("The parameters AssociationId and PublicIp cannot be used together."));
        }
        (Some(text), None) => {
            let id: AssociationId = id::<Association>(text)?;
            let is_meant = |known: &AddressRecord| known.spec.association.is_some_and(|known| known.id == id);
            let found = context.cloud.addresses().list()?.into_iter().find(is_meant);
            found.ok_or_else(|| AssociationId::not_found(text))?
        }
        (None, Some(public_ip)) => by_public_ip(context, public_ip)?,
        (None, None) => return Err(missing("AssociationId")),
    };
    check_dry_run(input.dry_run)?;
    super::report(context.cloud.addresses().disassociate(&address.meta.id.to_string())?);
    Ok(Value::Null)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReleaseAddress {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    dry_run: bool,
}

pub fn release(context: &Context, input: ReleaseAddress) -> Result<Value, ApiError> {
    let address = find(context, input.allocation_id.as_deref(), input.public_ip.as_deref())?;
    check_dry_run(input.dry_run)?;
    context.cloud.addresses().release(&address.meta.id.to_string())?;
    Ok(Value::Null)
}
