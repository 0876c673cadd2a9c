//! VPCs, their attributes and their DHCP options.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::permission::range;
use super::resource::{AttributeBoolean, Listed, id, missing, not_found};
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::shapes;
use ec2::api::ACCOUNT_ID;
use ec2::api::vpc::DHCP_OPTIONS_ID;
use ec2::id::{Vpc, VpcId};
use ec2::network::DOMAIN;
use ec2::{Ec2Error, ErrorCode};
use store::VpcRecord;

const VPCS: Listed = Listed {
    list: "Vpcs",
    id: "VpcId",
    filters: &[
        ("cidr", "CidrBlock"),
        ("cidr-block", "CidrBlock"),
        ("cidr-block-association.association-id", "CidrBlockAssociationSet.AssociationId"),
        ("cidr-block-association.cidr-block", "CidrBlockAssociationSet.CidrBlock"),
        ("cidr-block-association.state", "CidrBlockAssociationSet.CidrBlockState.State"),
        ("cidrBlock", "CidrBlock"),
        ("dhcp-options-id", "DhcpOptionsId"),
        ("dhcpOptionsId", "DhcpOptionsId"),
        ("is-default", "IsDefault"),
        ("isDefault", "IsDefault"),
        ("owner-id", "OwnerId"),
        ("state", "State"),
        ("vpc-id", "VpcId"),
    ],
};

const CLASSIC_LINKS: Listed =
    Listed { list: "Vpcs", id: "VpcId", filters: &[("is-classic-link-enabled", "ClassicLinkEnabled")] };

const DHCP_OPTIONS: Listed = Listed {
    list: "DhcpOptions",
    id: "DhcpOptionsId",
    filters: &[
        ("dhcp-options-id", "DhcpOptionsId"),
        ("key", "DhcpConfigurations.Key"),
        ("owner-id", "OwnerId"),
        ("value", "DhcpConfigurations.Values.Value"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeVpcs {
    vpc_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeVpcs, listing: Listing) -> Result<Value, ApiError> {
    let vpcs = context.cloud.vpcs().list()?;
    let vpcs = vpcs.iter().map(|vpc| super::respond(shapes::vpc(vpc))).collect::<Result<_, _>>()?;
    VPCS.respond::<Vpc>(vpcs, &input.vpc_ids, listing)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateVpc {
    cidr_block: Option<String>,
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateVpc) -> Result<Value, ApiError> {
    let cidr = range("CidrBlock", input.cidr_block.as_deref().ok_or_else(|| missing("CidrBlock"))?)?;
    let tags = tags_for("vpc", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let record = context.cloud.vpcs().create(cidr, tags)?;
    Ok(json!({"Vpc": super::respond(shapes::vpc(&record))?}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateDefaultVpc {
    dry_run: bool,
}

pub fn create_default(context: &Context, input: CreateDefaultVpc) -> Result<Value, ApiError> {
    check_dry_run(input.dry_run)?;
    let record = context.cloud.vpcs().create_default()?;
    Ok(json!({"Vpc": super::respond(shapes::vpc(&record))?}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteVpc {
    vpc_id: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteVpc) -> Result<Value, ApiError> {
    let vpc = find(context, &input.vpc_id)?;
    check_dry_run(input.dry_run)?;
    context.cloud.vpcs().delete(&vpc.meta.id.to_string())?;
    Ok(Value::Null)
}

fn find(context: &Context, text: &str) -> Result<VpcRecord, ApiError> {
    let id: VpcId = id::<Vpc>(text)?;
    let found = context.cloud.vpcs().list()?.into_iter().find(|vpc| vpc.meta.id == id);
    found.ok_or_else(|| VpcId::not_found(text).into())
}

/// The attributes of all VPCs, each with its value and the reason why it cannot have another.
const ATTRIBUTES: [(&str, &str, bool, &str); 3] = [
    ("enableDnsHostnames", "EnableDnsHostnames", true, "Instances always have private DNS host names."),
    ("enableDnsSupport", "EnableDnsSupport", true, "Instances always have the VPC's DNS server."),
    ("enableNetworkAddressUsageMetrics", "EnableNetworkAddressUsageMetrics", false, "Address usage is not metered."),
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeVpcAttribute {
    vpc_id: String,
    attribute: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn attribute(context: &Context, input: DescribeVpcAttribute) -> Result<Value, ApiError> {
    let vpc = find(context, &input.vpc_id)?;
    check_dry_run(input.dry_run)?;
    let mut response = json!({"VpcId": vpc.meta.id});
    if let Some((_, member, value, _)) = ATTRIBUTES.iter().find(|(name, ..)| *name == input.attribute) {
        response[*member] = json!({"Value": value});
    }
    Ok(response)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifyVpcAttribute {
    vpc_id: String,
    enable_dns_hostnames: Option<AttributeBoolean>,
    enable_dns_support: Option<AttributeBoolean>,
    enable_network_address_usage_metrics: Option<AttributeBoolean>,
}

/// Accepts the value that an attribute has. There is no other.
pub fn modify_attribute(context: &Context, input: ModifyVpcAttribute) -> Result<Value, ApiError> {
    find(context, &input.vpc_id)?;
    let given = [input.enable_dns_hostnames, input.enable_dns_support, input.enable_network_address_usage_metrics];
    if given.iter().all(Option::is_none) {
        return Err(missing("EnableDnsHostnames, EnableDnsSupport or EnableNetworkAddressUsageMetrics"));
    }
    for ((_, member, value, reason), given) in ATTRIBUTES.iter().zip(given) {
        if let Some(other) = given.and_then(|attribute| attribute.value).filter(|given| given != value) {
            let what = format!("Wisp does not support the parameter {member} with the value '{other}'. {reason}");
            return Err(Ec2Error::refused(ErrorCode::UnsupportedOperation, what, None).into());
        }
    }
    Ok(Value::Null)
}

pub fn classic_link(context: &Context, input: DescribeVpcs, listing: Listing) -> Result<Value, ApiError> {
    let mut vpcs = Vec::new();
    for vpc in context.cloud.vpcs().list()? {
        let shape = super::respond(shapes::vpc(&vpc))?;
        vpcs.push(json!({"ClassicLinkEnabled": false, "Tags": shape["Tags"], "VpcId": shape["VpcId"]}));
    }
    let mut response = CLASSIC_LINKS.respond::<Vpc>(vpcs, &input.vpc_ids, listing)?;
    // This action has no pages.
    response.as_object_mut().and_then(|members| members.remove("NextToken"));
    Ok(response)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeDhcpOptions {
    dhcp_options_ids: Vec<String>,
}

/// Lists the only set of DHCP options, which the netstack of every instance has.
pub fn dhcp_options(_: &Context, input: DescribeDhcpOptions, listing: Listing) -> Result<Value, ApiError> {
    let configuration = |key: &str, value: &str| json!({"Key": key, "Values": [{"Value": value}]});
    let options = json!({
        "DhcpConfigurations": [
            configuration("domain-name", DOMAIN),
            configuration("domain-name-servers", "AmazonProvidedDNS"),
        ],
        "DhcpOptionsId": DHCP_OPTIONS_ID,
        "OwnerId": ACCOUNT_ID,
        "Tags": [],
    });
    let unknown = |id: &str| not_found("InvalidDhcpOptionID.NotFound", "dhcpOption ID", id);
    DHCP_OPTIONS.respond_by(vec![options], &input.dhcp_options_ids, unknown, listing)
}
