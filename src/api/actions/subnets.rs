//! Subnets.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::permission::range;
use super::resource::{AttributeBoolean, Listed, combination, id, missing};
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::network::SubnetSpec;
use cloud::shapes;
use ec2::Ec2Error;
use ec2::id::{Subnet, SubnetId, Vpc, VpcId};
use ec2::network::Zone;
use store::SubnetRecord;

const SUBNETS: Listed = Listed {
    list: "Subnets",
    id: "SubnetId",
    filters: &[
        ("availability-zone", "AvailabilityZone"),
        ("availability-zone-id", "AvailabilityZoneId"),
        ("availabilityZone", "AvailabilityZone"),
        ("availabilityZoneId", "AvailabilityZoneId"),
        ("available-ip-address-count", "AvailableIpAddressCount"),
        ("cidr", "CidrBlock"),
        ("cidr-block", "CidrBlock"),
        ("cidrBlock", "CidrBlock"),
        ("default-for-az", "DefaultForAz"),
        ("defaultForAz", "DefaultForAz"),
        ("enable-dns64", "EnableDns64"),
        ("ipv6-native", "Ipv6Native"),
        ("map-public-ip-on-launch", "MapPublicIpOnLaunch"),
        ("owner-id", "OwnerId"),
        ("private-dns-name-options-on-launch.hostname-type", "PrivateDnsNameOptionsOnLaunch.HostnameType"),
        ("state", "State"),
        ("subnet-arn", "SubnetArn"),
        ("subnet-id", "SubnetId"),
        ("vpc-id", "VpcId"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeSubnets {
    subnet_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeSubnets, listing: Listing) -> Result<Value, ApiError> {
    let subnets = shapes_of(context, &context.cloud.subnets().list()?)?;
    SUBNETS.respond::<Subnet>(subnets, &input.subnet_ids, listing)
}

fn shapes_of(context: &Context, subnets: &[SubnetRecord]) -> Result<Vec<Value>, ApiError> {
    let free = context.cloud.subnets().free_addresses(subnets)?;
    subnets.iter().zip(free).map(|(subnet, free)| super::respond(shapes::subnet(subnet, free))).collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateSubnet {
    vpc_id: String,
    cidr_block: Option<String>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default)]
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateSubnet) -> Result<Value, ApiError> {
    let vpc = id::<Vpc>(&input.vpc_id)?;
    if context.cloud.vpcs().list()?.iter().all(|known| known.meta.id != vpc) {
        return Err(VpcId::not_found(&input.vpc_id).into());
    }
    let spec = SubnetSpec {
        vpc: Some(vpc.to_string()),
        cidr: range("CidrBlock", input.cidr_block.as_deref().ok_or_else(|| missing("CidrBlock"))?)?,
        zone: zone(input.availability_zone.as_deref(), input.availability_zone_id.as_deref())?.unwrap_or_default(),
        map_public_ip: false,
        tags: tags_for("subnet", &input.tag_specifications)?,
    };
    check_dry_run(input.dry_run)?;
    let record = context.cloud.subnets().create(&spec)?;
    Ok(json!({"Subnet": shapes_of(context, &[record])?.pop()}))
}

/// Returns the zone that a request names by its name or by its ID.
pub fn zone(name: Option<&str>, zone_id: Option<&str>) -> Result<Option<Zone>, ApiError> {
    match (name, zone_id) {
        (Some(_), Some(_)) => {
            Err(combination("The parameters AvailabilityZone and AvailabilityZoneId cannot be used together."))
        }
        (Some(name), None) => Ok(Some(name.parse()?)),
        (None, Some(given)) => match Zone::ALL.into_iter().find(|zone| zone.id() == given) {
            Some(zone) => Ok(Some(zone)),
            None => {
                let given: String = given.chars().take(100).collect();
                let rule = format!("it must be one of {} to {}.", Zone::A.id(), Zone::F.id());
                Err(Ec2Error::invalid_parameter("AvailabilityZoneId", given, rule).into())
            }
        },
        (None, None) => Ok(None),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteSubnet {
    subnet_id: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteSubnet) -> Result<Value, ApiError> {
    let id = find(context, &input.subnet_id)?;
    check_dry_run(input.dry_run)?;
    context.cloud.subnets().delete(&id.to_string())?;
    Ok(Value::Null)
}

fn find(context: &Context, text: &str) -> Result<SubnetId, ApiError> {
    let id = id::<Subnet>(text)?;
    match context.cloud.subnets().list()?.iter().any(|subnet| subnet.meta.id == id) {
        true => Ok(id),
        false => Err(SubnetId::not_found(text).into()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifySubnetAttribute {
    subnet_id: String,
    map_public_ip_on_launch: Option<AttributeBoolean>,
}

pub fn modify_attribute(context: &Context, input: ModifySubnetAttribute) -> Result<Value, ApiError> {
    let id = find(context, &input.subnet_id)?;
    if let Some(map_public_ip) = input.map_public_ip_on_launch.and_then(|attribute| attribute.value) {
        context.cloud.subnets().map_public_ip(&id.to_string(), map_public_ip)?;
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_has_name_or_id() {
        assert_eq!(zone(Some("us-east-1b"), None), Ok(Some(Zone::B)));
        assert_eq!(zone(None, Some("use1-az2")), Ok(Some(Zone::B)));
        assert_eq!(zone(None, None), Ok(None));
        assert!(zone(Some("us-west-1a"), None).is_err());
        assert!(zone(None, Some("use1-az9")).is_err());
        assert!(zone(Some("us-east-1b"), Some("use1-az2")).is_err());
    }
}
