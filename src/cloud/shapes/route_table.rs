use crate::network::is_attached;
use ec2::api::internet_gateway::{InternetGateway, InternetGatewayAttachment};
use ec2::api::route_table::{Route, RouteTable, RouteTableAssociation, RouteTableAssociationState};
use ec2::api::{ACCOUNT_ID, Tag};
use ec2::id::VpcId;
use store::{InternetGatewayRecord, RouteTableRecord};

pub fn internet_gateway(record: &InternetGatewayRecord) -> InternetGateway {
    let attachment = |vpc_id: VpcId| InternetGatewayAttachment { state: "available", vpc_id };
    InternetGateway {
        attachments: record.spec.vpc_id.map(attachment).into_iter().collect(),
        internet_gateway_id: record.meta.id,
        owner_id: ACCOUNT_ID,
        tags: Tag::list(&record.meta.tags),
    }
}

/// `range` is the VPC's address range, which has the local route.
pub fn route_table(record: &RouteTableRecord, range: ipnet::Ipv4Net, gateways: &[InternetGatewayRecord]) -> RouteTable {
    let association = |association: &store::RouteTableAssociation| RouteTableAssociation {
        association_state: RouteTableAssociationState { state: "associated" },
        main: association.subnet_id.is_none(),
        route_table_association_id: association.id,
        route_table_id: record.meta.id,
        subnet_id: association.subnet_id,
    };
    let route = |route: &store::Route| Route {
        destination_cidr_block: route.destination.to_string(),
        gateway_id: route.gateway_id.to_string(),
        origin: "CreateRoute",
        state: if is_attached(gateways, route.gateway_id, record.spec.vpc_id) { "active" } else { "blackhole" },
    };
    let local = Route {
        destination_cidr_block: range.to_string(),
        gateway_id: "local".into(),
        origin: "CreateRouteTable",
        state: "active",
    };
    RouteTable {
        associations: record.spec.associations.iter().map(association).collect(),
        owner_id: ACCOUNT_ID,
        propagating_vgws: [],
        route_table_id: record.meta.id,
        routes: std::iter::once(local).chain(record.spec.routes.iter().map(route)).collect(),
        tags: Tag::list(&record.meta.tags),
        vpc_id: record.spec.vpc_id,
    }
}
