//! EBS volumes.

use serde::Serialize;

use super::{Tag, Timestamp};
use crate::network::Zone;
use crate::{InstanceId, VolumeId};

/// EC2 API Reference, `Volume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    pub attachments: Vec<VolumeAttachment>,
    /// None unless the request that created the volume named a zone. An instance in any zone can use the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<Zone>,
    pub create_time: Timestamp,
    pub encrypted: bool,
    /// None for HDD types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u32>,
    pub multi_attach_enabled: bool,
    /// In GiB.
    pub size: u64,
    /// Empty if the volume was not created from a snapshot.
    pub snapshot_id: String,
    pub state: &'static str,
    pub tags: Vec<Tag>,
    /// In MiB/s, for gp3 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput: Option<u32>,
    pub volume_id: VolumeId,
    pub volume_type: String,
}

/// EC2 API Reference, `VolumeAttachment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeAttachment {
    pub attach_time: Timestamp,
    pub delete_on_termination: bool,
    pub device: String,
    pub instance_id: InstanceId,
    pub state: &'static str,
    pub volume_id: VolumeId,
}

/// EC2 API Reference, `VolumeModification`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeModification {
    pub end_time: Timestamp,
    pub modification_state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_iops: Option<u32>,
    pub original_multi_attach_enabled: bool,
    /// In GiB.
    pub original_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_throughput: Option<u32>,
    pub original_volume_type: String,
    /// In percent.
    pub progress: u64,
    pub start_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_iops: Option<u32>,
    pub target_multi_attach_enabled: bool,
    /// In GiB.
    pub target_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_throughput: Option<u32>,
    pub target_volume_type: String,
    pub volume_id: VolumeId,
}
