//! Internet gateways.

use serde::Deserialize;
use serde_json::{Value, json};

use super::input::{Listing, check_dry_run};
use super::resource::{Listed, id};
use super::tags::{TagSpecification, tags_for};
use super::{Context, report};
use crate::error::ApiError;
use cloud::shapes;
use ec2::id::{InternetGateway, Vpc};

const GATEWAYS: Listed = Listed {
    list: "InternetGateways",
    id: "InternetGatewayId",
    filters: &[
        ("attachment.state", "Attachments.State"),
        ("attachment.vpc-id", "Attachments.VpcId"),
        ("internet-gateway-id", "InternetGatewayId"),
        ("owner-id", "OwnerId"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeInternetGateways {
    internet_gateway_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeInternetGateways, listing: Listing) -> Result<Value, ApiError> {
    let gateways = context.cloud.internet_gateways().list()?;
    let gateways = gateways.iter().map(|gateway| super::respond(shapes::internet_gateway(gateway)));
    GATEWAYS.respond::<InternetGateway>(gateways.collect::<Result<_, _>>()?, &input.internet_gateway_ids, listing)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateInternetGateway {
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateInternetGateway) -> Result<Value, ApiError> {
    let tags = tags_for("internet-gateway", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let gateway = context.cloud.internet_gateways().create(tags)?;
    Ok(json!({"InternetGateway": super::respond(shapes::internet_gateway(&gateway))?}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Attachment {
    internet_gateway_id: String,
    vpc_id: String,
    dry_run: bool,
}

pub fn attach(context: &Context, input: Attachment) -> Result<Value, ApiError> {
    let (gateway, vpc) = (id::<InternetGateway>(&input.internet_gateway_id)?, id::<Vpc>(&input.vpc_id)?);
    check_dry_run(input.dry_run)?;
    report(context.cloud.internet_gateways().attach(&gateway.to_string(), &vpc.to_string())?);
    Ok(Value::Null)
}

pub fn detach(context: &Context, input: Attachment) -> Result<Value, ApiError> {
    let (gateway, vpc) = (id::<InternetGateway>(&input.internet_gateway_id)?, id::<Vpc>(&input.vpc_id)?);
    check_dry_run(input.dry_run)?;
    report(context.cloud.internet_gateways().detach(&gateway.to_string(), Some(&vpc.to_string()))?);
    Ok(Value::Null)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeleteInternetGateway {
    internet_gateway_id: String,
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteInternetGateway) -> Result<Value, ApiError> {
    let gateway = id::<InternetGateway>(&input.internet_gateway_id)?;
    check_dry_run(input.dry_run)?;
    context.cloud.internet_gateways().delete(&gateway.to_string())?;
    Ok(Value::Null)
}
