//! Instances in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AttachmentRecord, NetworkRecord, Record};
use crate::ec2::credits::{CreditMode, KeptCredits};
use crate::ec2::state::{InstanceState, ShutdownBehavior, StateReason};
use crate::ec2::{ImageId, InstanceId, ReservationId, VolumeId};

/// An instance. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// The instance id.
    pub id: InstanceId,
    /// The reservation of the launch.
    pub reservation_id: ReservationId,
    /// The index in the launch, from 0.
    pub launch_index: u32,
    /// The client token of the launch.
    pub client_token: Option<String>,
    /// The image.
    pub image_id: ImageId,
    /// The image's name at launch.
    pub image_name: String,
    /// The instance type.
    pub instance_type: String,
    /// vCPUs: the type's, or an override.
    pub vcpus: u32,
    /// Threads per core.
    pub threads_per_core: u32,
    /// Memory in MiB: the type's, or an override.
    pub memory_mib: u64,
    /// True if vCPUs or memory are overridden.
    #[serde(default)]
    pub overridden: bool,
    /// The state.
    pub state: InstanceState,
    /// The reason for the state.
    pub state_reason: Option<StateReason>,
    /// The initiator and the time of the last state transition, in EC2's words; empty while the instance runs.
    #[serde(default)]
    pub state_transition_reason: String,
    /// The time of the launch.
    pub created: u64,
    /// The time of the last start.
    pub launch_time: u64,
    /// The number of starts.
    #[serde(default)]
    pub starts: u32,
    /// The time of termination.
    pub terminated: Option<u64>,
    /// The key pair whose public key the guest gets.
    pub key_name: Option<String>,
    /// User data in base64.
    pub user_data: Option<String>,
    /// The effect of the guest's own power-off.
    pub shutdown_behavior: ShutdownBehavior,
    /// True if the instance cannot be terminated.
    pub termination_protection: bool,
    /// True if hibernation was enabled at launch.
    #[serde(default)]
    pub hibernation: bool,
    /// The attached volumes, the root volume first.
    pub block_devices: Vec<BlockDeviceMapping>,
    /// Kernel command-line options, which are appended to the image's.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// The network interface; none for an instance from before Wisp had networks.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// The requested credit mode.
    #[serde(default)]
    pub cpu_credits: Option<CreditMode>,
    /// The CPU credits at the last stop.
    #[serde(default)]
    pub credits: Option<KeptCredits>,
    /// True if the instance type's limits are not enforced.
    #[serde(default)]
    pub no_limits: bool,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A block device mapping: an instance's side of a volume's attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeviceMapping {
    /// The device name in EC2's form, for example `/dev/sdf`.
    pub device_name: String,
    /// The volume.
    pub volume_id: VolumeId,
    /// True if the volume is deleted when the instance is terminated.
    pub delete_on_termination: bool,
    /// The time of the attachment.
    pub attach_time: u64,
}

impl BlockDeviceMapping {
    /// Creates the mapping of an attached volume.
    pub fn of(volume_id: VolumeId, attachment: &AttachmentRecord) -> BlockDeviceMapping {
        BlockDeviceMapping {
            device_name: attachment.device_name.clone(),
            volume_id,
            delete_on_termination: attachment.delete_on_termination,
            attach_time: attachment.attach_time,
        }
    }
}

impl InstanceRecord {
    /// Clears the reason for the previous state when the instance starts.
    pub fn clear_reason(&mut self) {
        self.state_reason = None;
        self.state_transition_reason.clear();
    }

    /// The value of the `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    /// Returns true if the metadata service serves the instance's tags.
    pub fn serves_tags(&self) -> bool {
        self.network.as_ref().is_some_and(|network| network.metadata_options.tags)
    }

    /// The root volume.
    pub fn root(&self) -> Option<&BlockDeviceMapping> {
        self.block_devices.first()
    }
}

impl Record for InstanceRecord {
    const TABLE: &'static str = "instances";

    fn key(&self) -> String {
        self.id.to_string()
    }
}
