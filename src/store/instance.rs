//! Instances as they are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AttachmentRecord, NetworkRecord, Record};
use crate::ec2::credits::{CreditMode, KeptCredits};
use crate::ec2::state::{InstanceState, ShutdownBehavior, StateReason};
use crate::ec2::{ImageId, InstanceId, ReservationId, VolumeId};

/// An instance. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its identifier.
    pub id: InstanceId,
    /// The launch that it came from.
    pub reservation_id: ReservationId,
    /// Its place in that launch, from 0.
    pub launch_index: u32,
    /// The token of that launch.
    pub client_token: Option<String>,
    /// What it was made from.
    pub image_id: ImageId,
    /// What that was called then.
    pub image_name: String,
    /// Its type.
    pub instance_type: String,
    /// vCPUs: the type's, or what overrides them.
    pub vcpus: u32,
    /// Threads for each core.
    pub threads_per_core: u32,
    /// Memory in MiB: the type's, or what overrides it.
    pub memory_mib: u64,
    /// Whether vCPUs and memory are not the type's.
    #[serde(default)]
    pub overridden: bool,
    /// Its state.
    pub state: InstanceState,
    /// Why it is in that state.
    pub state_reason: Option<StateReason>,
    /// When and by whom it came into that state, in EC2's words; empty while it runs.
    #[serde(default)]
    pub state_transition_reason: String,
    /// When it was launched first.
    pub created: u64,
    /// When it was started last.
    pub launch_time: u64,
    /// How often its machine has been started.
    #[serde(default)]
    pub starts: u32,
    /// When it was terminated.
    pub terminated: Option<u64>,
    /// The key pair whose public key is in the guest.
    pub key_name: Option<String>,
    /// User data, in base64.
    pub user_data: Option<String>,
    /// What the guest's own power-off does.
    pub shutdown_behavior: ShutdownBehavior,
    /// Whether `terminate` is refused.
    pub termination_protection: bool,
    /// Whether it can be hibernated, which is said when it is launched.
    #[serde(default)]
    pub hibernation: bool,
    /// Its volumes, the root first.
    pub block_devices: Vec<BlockDeviceMapping>,
    /// Options for the kernel command line, behind the image's.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Its network interface, unless it is of a time before there was one.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// What happens when its CPU credits are spent, if that was said.
    #[serde(default)]
    pub cpu_credits: Option<CreditMode>,
    /// The CPU credits that it had when it stopped last.
    #[serde(default)]
    pub credits: Option<KeptCredits>,
    /// Whether it may have all that the host has, whatever its type.
    #[serde(default)]
    pub no_limits: bool,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A volume of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeviceMapping {
    /// The name that EC2 gives the device: `/dev/sdf`.
    pub device_name: String,
    /// Which volume.
    pub volume_id: VolumeId,
    /// Whether the volume goes with the instance.
    pub delete_on_termination: bool,
    /// When it was attached.
    pub attach_time: u64,
}

impl BlockDeviceMapping {
    /// The instance's side of a volume's attachment.
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
    /// It goes towards running: why it did not is of no interest any more.
    pub fn clear_reason(&mut self) {
        self.state_reason = None;
        self.state_transition_reason.clear();
    }

    /// The value of its `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    /// Whether its tags are part of its metadata.
    pub fn serves_tags(&self) -> bool {
        self.network.as_ref().is_some_and(|network| network.metadata_options.tags)
    }

    /// Its root volume.
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
