//! Records of instances in the store.

use serde::{Deserialize, Serialize};

use super::{AttachmentRecord, Meta, NetworkRecord, Record, Resource, StoreError, Transaction};
use ec2::credits::{CreditMode, KeptCredits};
use ec2::state::{InstanceState, ShutdownBehavior, StateReason};
use ec2::{ImageId, InstanceId, ReservationId, VolumeId};

/// An instance. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    pub meta: Meta<InstanceId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub image_id: ImageId,
    pub size: SizeRecord,
    /// Name of the key pair whose public key the guest gets.
    pub key_name: Option<String>,
    /// Encoded in base64.
    pub user_data: Option<String>,
    pub shutdown_behavior: ShutdownBehavior,
    pub termination_protection: bool,
    #[serde(default)]
    pub hibernation: bool,
    /// Options that are appended to the image's kernel command line.
    #[serde(default)]
    pub cmdline: Option<String>,
    #[serde(default)]
    pub cpu_credits: Option<CreditMode>,
    #[serde(default)]
    pub no_limits: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeRecord {
    pub instance_type: String,
    /// From the instance type, unless overridden.
    pub vcpus: u32,
    pub threads_per_core: u32,
    /// From the instance type, unless overridden.
    pub memory_mib: u64,
    /// True if the user overrode the instance type's number of vCPUs or memory size.
    #[serde(default)]
    pub overridden: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub launch: LaunchRecord,
    pub state: InstanceState,
    pub state_reason: Option<StateReason>,
    /// The initiator and the time of the last stop or termination, in EC2's words. Cleared when the instance starts.
    #[serde(default)]
    pub state_transition_reason: String,
    /// Time of the last start.
    pub launch_time: u64,
    #[serde(default)]
    pub starts: u32,
    pub terminated: Option<u64>,
    /// The attached volumes, root volume first.
    pub block_devices: Vec<BlockDeviceMapping>,
    /// `None` if the instance is terminated, or if it was last started before Wisp supported networks.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// CPU credits at the last stop, if they are known.
    #[serde(default)]
    pub credits: Option<KeptCredits>,
}

/// The launch or fork that created an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRecord {
    pub reservation_id: ReservationId,
    /// Index among the instances of the same launch, from 0.
    pub launch_index: u32,
    /// The image's name at launch.
    pub image_name: String,
    /// Position in the order in which instances were created, for those created within one second.
    #[serde(default)]
    pub sequence: u64,
}

/// A volume's attachment in the instance's record. The volume's record contains the [`AttachmentRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeviceMapping {
    /// EC2's device name, for example `/dev/sdf`. The guest's kernel uses other names.
    pub device_name: String,
    pub volume_id: VolumeId,
    pub delete_on_termination: bool,
    pub attach_time: u64,
}

impl BlockDeviceMapping {
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
    /// Returns a sequence number for the next instance that `tx` creates.
    pub fn next_sequence(tx: &Transaction) -> Result<u64, StoreError> {
        let last = tx.list::<InstanceRecord>()?.iter().map(|record| record.status.launch.sequence).max();
        Ok(last.unwrap_or(0).saturating_add(1))
    }

    /// Clears the reasons for the last stop, after the instance has started or an interrupted stop was undone.
    pub fn clear_reason(&mut self) {
        self.status.state_reason = None;
        self.status.state_transition_reason.clear();
    }

    pub fn serves_tags(&self) -> bool {
        self.status.network.as_ref().is_some_and(|network| network.metadata_options.tags)
    }

    pub fn root(&self) -> Option<&BlockDeviceMapping> {
        self.status.block_devices.first()
    }
}

impl Record for InstanceRecord {
    const TABLE: &'static str = "instances";

    fn key(&self) -> String {
        self.meta.id.to_string()
    }
}

impl Resource for InstanceRecord {
    type Id = InstanceId;

    fn meta(&self) -> &Meta<InstanceId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<InstanceId> {
        &mut self.meta
    }
}
