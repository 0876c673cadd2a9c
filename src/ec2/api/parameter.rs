//! Parameters of the Systems Manager parameter store.

use serde::Serialize;

use super::Timestamp;
use crate::ImageId;
use crate::image_alias::AliasPath;

/// Systems Manager API Reference, `Parameter`: an image alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Parameter {
    #[serde(rename = "ARN")]
    pub arn: String,
    pub data_type: &'static str,
    pub last_modified_date: Timestamp,
    pub name: AliasPath,
    #[serde(rename = "Type")]
    pub parameter_type: &'static str,
    pub value: ImageId,
    pub version: u64,
}
