//! Instances, their reservations and their states.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::metadata::InstanceMetadataOptionsResponse;
use super::network_interface::{GroupIdentifier, InstanceNetworkInterface};
use super::vpc::PrivateDnsNameOptions;
use super::{EmptyList, Tag, Timestamp};
use crate::id::{SubnetId, VpcId};
use crate::network::Zone;
use crate::state;
use crate::{ImageId, InstanceId, ReservationId, VolumeId};

/// EC2 API Reference, `Reservation`: the instances of one launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reservation {
    /// Security groups outside of VPCs.
    pub groups: EmptyList,
    pub instances: Vec<Instance>,
    pub owner_id: &'static str,
    pub reservation_id: Option<ReservationId>,
}

/// EC2 API Reference, `Instance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Instance {
    pub ami_launch_index: u32,
    pub architecture: &'static str,
    pub block_device_mappings: Vec<InstanceBlockDeviceMapping>,
    pub boot_mode: &'static str,
    pub capacity_reservation_specification: CapacityReservationSpecification,
    pub client_token: String,
    pub cpu_options: CpuOptions,
    pub current_instance_boot_mode: &'static str,
    pub ebs_optimized: bool,
    pub ena_support: bool,
    pub enclave_options: EnclaveOptions,
    pub hibernation_options: HibernationOptions,
    pub hypervisor: &'static str,
    pub image_id: ImageId,
    pub instance_id: InstanceId,
    pub instance_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    pub launch_time: Timestamp,
    pub maintenance_options: InstanceMaintenanceOptions,
    pub monitoring: Monitoring,
    #[serde(flatten)]
    pub network: InstanceNetwork,
    pub placement: Placement,
    pub platform_details: &'static str,
    pub private_dns_name_options: PrivateDnsNameOptions,
    pub product_codes: EmptyList,
    pub root_device_name: Option<String>,
    pub root_device_type: &'static str,
    pub state: InstanceState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<state::StateReason>,
    pub state_transition_reason: String,
    pub tags: Vec<Tag>,
    pub usage_operation: &'static str,
    pub usage_operation_update_time: Timestamp,
    pub virtualization_type: &'static str,
}

/// The members of an `Instance` about its network. A terminated instance has none of the optional ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceNetwork {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_options: Option<InstanceMetadataOptionsResponse>,
    pub network_interfaces: Vec<InstanceNetworkInterface>,
    /// Empty if the instance has no private address.
    pub private_dns_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_ip_address: Option<Ipv4Addr>,
    /// Empty, because public addresses have no DNS names.
    pub public_dns_name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_ip_address: Option<Ipv4Addr>,
    pub security_groups: Vec<GroupIdentifier>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_dest_check: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet_id: Option<SubnetId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vpc_id: Option<VpcId>,
}

/// EC2 API Reference, `InstanceBlockDeviceMapping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceBlockDeviceMapping {
    pub device_name: String,
    pub ebs: EbsInstanceBlockDevice,
}

/// EC2 API Reference, `EbsInstanceBlockDevice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EbsInstanceBlockDevice {
    pub attach_time: Timestamp,
    pub delete_on_termination: bool,
    pub status: &'static str,
    pub volume_id: VolumeId,
}

/// EC2 API Reference, `CapacityReservationSpecificationResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CapacityReservationSpecification {
    pub capacity_reservation_preference: &'static str,
}

/// EC2 API Reference, `CpuOptions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CpuOptions {
    pub core_count: u32,
    pub threads_per_core: u32,
}

/// EC2 API Reference, `EnclaveOptions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EnclaveOptions {
    pub enabled: bool,
}

/// EC2 API Reference, `HibernationOptions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HibernationOptions {
    pub configured: bool,
}

/// EC2 API Reference, `InstanceMaintenanceOptions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceMaintenanceOptions {
    pub auto_recovery: &'static str,
    pub reboot_migration: &'static str,
}

/// EC2 API Reference, `Monitoring`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Monitoring {
    pub state: &'static str,
}

/// EC2 API Reference, `Placement`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Placement {
    /// None if the instance is terminated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<Zone>,
    /// Empty if the instance is in no placement group.
    pub group_name: &'static str,
    pub tenancy: &'static str,
}

/// EC2 API Reference, `InstanceState`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceState {
    pub code: u8,
    pub name: &'static str,
}

impl From<state::InstanceState> for InstanceState {
    fn from(state: state::InstanceState) -> Self {
        InstanceState { code: state.code(), name: state.as_str() }
    }
}

/// EC2 API Reference, `InstanceStateChange`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceStateChange {
    pub current_state: InstanceState,
    pub instance_id: InstanceId,
    pub previous_state: InstanceState,
}

/// EC2 API Reference, `InstanceCreditSpecification`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceCreditSpecification {
    pub cpu_credits: &'static str,
    pub instance_id: InstanceId,
}
