//! Route tables, their routes and their associations.

use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::{Value, json};

use super::input::{Listing, check_dry_run};
use super::permission::range;
use super::resource::{Listed, id, missing};
use super::tags::{TagSpecification, tags_for};
use super::{Context, report};
use crate::error::ApiError;
use cloud::shapes;
use ec2::id::{InternetGateway, RouteTable, RouteTableAssociation, Subnet, Vpc};
use store::RouteTableRecord;

const TABLES: Listed = Listed {
    list: "RouteTables",
    id: "RouteTableId",
    filters: &[
        ("association.main", "Associations.Main"),
        ("association.route-table-association-id", "Associations.RouteTableAssociationId"),
        ("association.route-table-id", "Associations.RouteTableId"),
        ("association.subnet-id", "Associations.SubnetId"),
        ("owner-id", "OwnerId"),
        ("route-table-id", "RouteTableId"),
        ("route.destination-cidr-block", "Routes.DestinationCidrBlock"),
        ("route.gateway-id", "Routes.GatewayId"),
        ("route.origin", "Routes.Origin"),
        ("route.state", "Routes.State"),
        ("vpc-id", "VpcId"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeRouteTables {
    route_table_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeRouteTables, listing: Listing) -> Result<Value, ApiError> {
    let tables = shapes_of(context, &context.cloud.route_tables().list()?)?;
    TABLES.respond::<RouteTable>(tables, &input.route_table_ids, listing)
}

fn shapes_of(context: &Context, tables: &[RouteTableRecord]) -> Result<Vec<Value>, ApiError> {
    let (vpcs, gateways) = (context.cloud.vpcs().list()?, context.cloud.internet_gateways().list()?);
    let shape = |table: &RouteTableRecord| {
        let vpc = vpcs.iter().find(|vpc| vpc.meta.id == table.spec.vpc_id)?;
        Some(super::respond(shapes::route_table(table, vpc.spec.cidr, &gateways)))
    };
    tables.iter().filter_map(shape).collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateRouteTable {
    vpc_id: String,
    client_token: Option<String>,
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateRouteTable) -> Result<Value, ApiError> {
    let vpc = id::<Vpc>(&input.vpc_id)?;
    let tags = tags_for("route-table", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let table = context.cloud.route_tables().create(Some(&vpc.to_string()), tags, input.client_token)?;
    Ok(json!({"RouteTable": shapes_of(context, &[table])?.pop()}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeleteRouteTable {
    route_table_id: String,
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteRouteTable) -> Result<Value, ApiError> {
    let table = id::<RouteTable>(&input.route_table_id)?;
    check_dry_run(input.dry_run)?;
    context.cloud.route_tables().delete(&table.to_string())?;
    Ok(Value::Null)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Route {
    route_table_id: String,
    destination_cidr_block: Option<String>,
    gateway_id: Option<String>,
    dry_run: bool,
}

impl Route {
    fn destination(&self) -> Result<Ipv4Net, ApiError> {
        let text = self.destination_cidr_block.as_deref().ok_or_else(|| missing("DestinationCidrBlock"))?;
        Ok(range("DestinationCidrBlock", text)?)
    }

    fn gateway(&self) -> Result<String, ApiError> {
        let text = self.gateway_id.as_deref().ok_or_else(|| missing("GatewayId"))?;
        Ok(id::<InternetGateway>(text)?.to_string())
    }
}

pub fn create_route(context: &Context, input: Route) -> Result<Value, ApiError> {
    let table = id::<RouteTable>(&input.route_table_id)?.to_string();
    let (destination, gateway) = (input.destination()?, input.gateway()?);
    check_dry_run(input.dry_run)?;
    report(context.cloud.route_tables().create_route(&table, destination, &gateway)?);
    Ok(json!({"Return": true}))
}

pub fn replace_route(context: &Context, input: Route) -> Result<Value, ApiError> {
    let table = id::<RouteTable>(&input.route_table_id)?.to_string();
    let (destination, gateway) = (input.destination()?, input.gateway()?);
    check_dry_run(input.dry_run)?;
    report(context.cloud.route_tables().replace_route(&table, destination, &gateway)?);
    Ok(Value::Null)
}

pub fn delete_route(context: &Context, input: Route) -> Result<Value, ApiError> {
    let table = id::<RouteTable>(&input.route_table_id)?.to_string();
    let destination = input.destination()?;
    check_dry_run(input.dry_run)?;
    report(context.cloud.route_tables().delete_route(&table, destination)?);
    Ok(Value::Null)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AssociateRouteTable {
    route_table_id: String,
    subnet_id: Option<String>,
    dry_run: bool,
}

pub fn associate(context: &Context, input: AssociateRouteTable) -> Result<Value, ApiError> {
    let table = id::<RouteTable>(&input.route_table_id)?.to_string();
    let subnet = id::<Subnet>(input.subnet_id.as_deref().ok_or_else(|| missing("SubnetId"))?)?.to_string();
    check_dry_run(input.dry_run)?;
    let association = report(context.cloud.route_tables().associate(&table, &subnet)?);
    Ok(json!({"AssociationId": association, "AssociationState": {"State": "associated"}}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisassociateRouteTable {
    association_id: String,
    dry_run: bool,
}

pub fn disassociate(context: &Context, input: DisassociateRouteTable) -> Result<Value, ApiError> {
    let association = id::<RouteTableAssociation>(&input.association_id)?;
    check_dry_run(input.dry_run)?;
    report(context.cloud.route_tables().disassociate(association)?);
    Ok(Value::Null)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplaceRouteTableAssociation {
    association_id: String,
    route_table_id: String,
    dry_run: bool,
}

pub fn replace_association(context: &Context, input: ReplaceRouteTableAssociation) -> Result<Value, ApiError> {
    let association = id::<RouteTableAssociation>(&input.association_id)?;
    let table = id::<RouteTable>(&input.route_table_id)?.to_string();
    check_dry_run(input.dry_run)?;
    let association = report(context.cloud.route_tables().replace_association(association, &table)?);
    Ok(json!({"AssociationState": {"State": "associated"}, "NewAssociationId": association}))
}
