//! Internet gateways.

use serde::Serialize;

use super::Tag;
use crate::id::{InternetGatewayId, VpcId};

/// EC2 API Reference, `InternetGateway`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InternetGateway {
    pub attachments: Vec<InternetGatewayAttachment>,
    pub internet_gateway_id: InternetGatewayId,
    pub owner_id: &'static str,
    pub tags: Vec<Tag>,
}

/// EC2 API Reference, `InternetGatewayAttachment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InternetGatewayAttachment {
    pub state: &'static str,
    pub vpc_id: VpcId,
}
