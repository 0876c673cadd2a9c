//! Images (AMIs).

use serde::Serialize;

use super::{Tag, Timestamp};
use crate::metadata::ImdsSupport;
use crate::{ImageId, InstanceId};

/// EC2 API Reference, `Image`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Image {
    pub architecture: &'static str,
    pub block_device_mappings: Vec<BlockDeviceMapping>,
    pub boot_mode: &'static str,
    pub creation_date: Timestamp,
    pub description: String,
    pub ena_support: bool,
    pub hypervisor: &'static str,
    pub image_id: ImageId,
    /// The owner's name, and the image's name.
    pub image_location: String,
    pub image_owner_alias: String,
    pub image_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imds_support: Option<ImdsSupport>,
    pub name: String,
    pub owner_id: &'static str,
    pub platform_details: &'static str,
    pub public: bool,
    pub root_device_name: &'static str,
    pub root_device_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_instance_id: Option<InstanceId>,
    pub state: &'static str,
    pub tags: Vec<Tag>,
    pub usage_operation: &'static str,
    pub virtualization_type: &'static str,
}

/// EC2 API Reference, `BlockDeviceMapping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BlockDeviceMapping {
    pub device_name: &'static str,
    pub ebs: EbsBlockDevice,
}

/// EC2 API Reference, `EbsBlockDevice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EbsBlockDevice {
    pub delete_on_termination: bool,
    pub encrypted: bool,
    pub snapshot_id: String,
    /// In GiB.
    pub volume_size: u64,
    pub volume_type: &'static str,
}
