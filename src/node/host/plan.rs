//! Start plans of instances, as the control plane decides them.

use super::{Guard, VolumeDisk};
use crate::guest::Seed;
use crate::image::Image;
use ec2::InstanceId;
use machine::config::CpuConfig;
use machine::launch::Restore;
use machine::limits::{CpuBudgetConfig, DiskLimits, NetLimits};
use machine::network::NetstackConfig;

/// Everything that a host needs to start an instance.
#[derive(Debug)]
pub struct InstancePlan<'a> {
    pub id: InstanceId,
    /// The instance's lock, which the machine inherits.
    pub lock: Guard,
    pub image: &'a Image,
    pub shape: MachineShape,
    /// The volumes in the order of the instance's block devices.
    pub volumes: Vec<VolumeDisk>,
    /// Sizes of new instance-store disks in GB (10^9 bytes).
    pub instance_store: Vec<u64>,
    pub limits: MachineLimits,
    /// Passed to the guest's agent, if it needs one.
    pub seed: Option<Seed>,
    /// `None` for a network device without a network.
    pub network: Option<NetworkPlan>,
    pub source: Source<'a>,
    /// Monotonic start time of the user's command.
    pub began_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineShape {
    pub cpus: CpuConfig,
    pub memory_mib: u64,
    pub instance_type: String,
    /// Appended to the image's kernel command line.
    pub cmdline: Option<String>,
}

/// The limits of an instance type. Those of a volume are in its [`VolumeDisk`].
#[derive(Debug, Clone, Default)]
pub struct MachineLimits {
    pub cpu_budget: Option<CpuBudgetConfig>,
    pub disks: Option<DiskLimits>,
    pub network: Option<NetLimits>,
}

#[derive(Debug)]
pub struct NetworkPlan {
    pub link: NetstackConfig,
    pub connection: Connection,
}

/// The connection of a machine's network device to other networks.
#[derive(Debug)]
pub enum Connection {
    None,
    /// A user-mode network outside a VPC.
    User,
    /// The tap device of a VPC's router.
    Vpc(Guard),
}

/// The state from which an instance's machine starts.
#[derive(Debug)]
pub enum Source<'a> {
    Boot,
    /// A boot without the instance's identity, for a template.
    First,
    /// The instance's own snapshot.
    Hibernated(Restore),
    /// The snapshot of another machine. Its disks with these IDs are replaced by the instance's volumes, in order.
    Copy {
        restore: Restore,
        disks: &'a [String],
    },
}
