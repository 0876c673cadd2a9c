//! Route tables.

use serde::Serialize;

use super::{EmptyList, Tag};
use crate::id::{RouteTableAssociationId, RouteTableId, SubnetId, VpcId};

/// EC2 API Reference, `RouteTable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RouteTable {
    pub associations: Vec<RouteTableAssociation>,
    pub owner_id: &'static str,
    pub propagating_vgws: EmptyList,
    pub route_table_id: RouteTableId,
    pub routes: Vec<Route>,
    pub tags: Vec<Tag>,
    pub vpc_id: VpcId,
}

/// EC2 API Reference, `RouteTableAssociation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RouteTableAssociation {
    pub association_state: RouteTableAssociationState,
    pub main: bool,
    pub route_table_association_id: RouteTableAssociationId,
    pub route_table_id: RouteTableId,
    /// None for the association with the VPC, which makes the table the main one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet_id: Option<SubnetId>,
}

/// EC2 API Reference, `RouteTableAssociationState`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RouteTableAssociationState {
    pub state: &'static str,
}

/// EC2 API Reference, `Route`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Route {
    pub destination_cidr_block: String,
    pub gateway_id: String,
    pub origin: &'static str,
    pub state: &'static str,
}
