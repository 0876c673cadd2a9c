//! Records of route tables in the store.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::id::{InternetGatewayId, RouteTableAssociationId, RouteTableId, SubnetId, VpcId};

/// A route table. It has no status: its routes and associations are part of the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTableRecord {
    pub meta: Meta<RouteTableId>,
    pub spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub vpc_id: VpcId,
    /// Routes in addition to the local one, which every table has.
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub associations: Vec<RouteTableAssociation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: Ipv4Net,
    /// A gateway that may be detached or deleted. The route is then a black hole.
    pub gateway_id: InternetGatewayId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTableAssociation {
    pub id: RouteTableAssociationId,
    /// `None` makes the table the VPC's main one, for all subnets without an association.
    pub subnet_id: Option<SubnetId>,
}

impl RouteTableRecord {
    pub fn is_main(&self) -> bool {
        self.spec.associations.iter().any(|association| association.subnet_id.is_none())
    }
}

impl Record for RouteTableRecord {
    const TABLE: &'static str = "route_tables";

    fn key(&self) -> String {
        self.meta.id.to_string()
    }
}

impl Resource for RouteTableRecord {
    type Id = RouteTableId;

    fn meta(&self) -> &Meta<RouteTableId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<RouteTableId> {
        &mut self.meta
    }
}
