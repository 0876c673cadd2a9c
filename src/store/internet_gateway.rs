//! Records of internet gateways in the store.

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::id::{InternetGatewayId, VpcId};

/// An internet gateway. It has no status: its attachment is part of the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternetGatewayRecord {
    pub meta: Meta<InternetGatewayId>,
    pub spec: Spec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The VPC to which the gateway is attached. A VPC has at most one gateway.
    pub vpc_id: Option<VpcId>,
}

impl Record for InternetGatewayRecord {
    const TABLE: &'static str = "internet_gateways";
    const UNIQUE_KEYS: &'static [&'static str] = &["vpc"];

    fn key(&self) -> String {
        self.meta.id.to_string()
    }

    fn unique_key(&self, _name: &str) -> Option<String> {
        self.spec.vpc_id.map(|id| id.to_string())
    }
}

impl Resource for InternetGatewayRecord {
    type Id = InternetGatewayId;

    fn meta(&self) -> &Meta<InternetGatewayId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<InternetGatewayId> {
        &mut self.meta
    }
}
