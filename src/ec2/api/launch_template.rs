//! Launch templates and their versions.

use serde::Serialize;

use super::{Tag, Timestamp};
use crate::id::LaunchTemplateId;
use crate::launch_template::LaunchTemplateData;

/// `CreatedBy` of templates and versions: the account's root user, which has all requests.
pub const CREATED_BY: &str = "arn:aws:iam::000000000000:root";

/// EC2 API Reference, `LaunchTemplate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LaunchTemplate {
    pub create_time: Timestamp,
    pub created_by: &'static str,
    pub default_version_number: u64,
    pub latest_version_number: u64,
    pub launch_template_id: LaunchTemplateId,
    pub launch_template_name: String,
    pub tags: Vec<Tag>,
}

/// EC2 API Reference, `LaunchTemplateVersion`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LaunchTemplateVersion {
    pub create_time: Timestamp,
    pub created_by: &'static str,
    pub default_version: bool,
    pub launch_template_data: LaunchTemplateData,
    pub launch_template_id: LaunchTemplateId,
    pub launch_template_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_description: Option<String>,
    pub version_number: u64,
}

/// EC2 API Reference, `DeleteLaunchTemplateVersionsResult`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeletedLaunchTemplateVersions {
    pub successfully_deleted_launch_template_versions: Vec<DeletedLaunchTemplateVersion>,
    pub unsuccessfully_deleted_launch_template_versions: Vec<DeletedLaunchTemplateVersion>,
}

/// EC2 API Reference, `DeleteLaunchTemplateVersionsResponseSuccessItem` and, with an error,
/// `DeleteLaunchTemplateVersionsResponseErrorItem`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeletedLaunchTemplateVersion {
    pub launch_template_id: LaunchTemplateId,
    pub launch_template_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_error: Option<ResponseError>,
    pub version_number: u64,
}

/// EC2 API Reference, `ResponseError`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ResponseError {
    pub code: &'static str,
    pub message: String,
}
