//! The instances on a host: their locks, their machines and their guests.

use std::fmt::Debug;
use std::time::Duration;

use super::{Guard, InstancePlan, VolumeDisk};
use crate::error::NodeError;
use crate::instance::MachineError;
use ec2::state::InstanceState;
use ec2::{InstanceId, VolumeId};
use machine::control::VmmStatus;
use machine::end_record::EndRecord;
use machine::kept_balance::KeptBalance;
use machine::launch::Restore;
use machine::limits::DiskLimits;
use machine::network::NetstackConfig;
use machine::usage::Reading;

/// The lock of an instance. A running machine holds it, and before that the command that starts the machine.
#[derive(Debug)]
pub enum InstanceLock {
    /// The caller has the lock: no machine is running, and none can start.
    Taken(Guard),
    Held,
    /// The host has no such instance.
    Missing,
}

impl InstanceLock {
    pub fn taken(self) -> Option<Guard> {
        match self {
            InstanceLock::Taken(lock) => Some(lock),
            InstanceLock::Held | InstanceLock::Missing => None,
        }
    }
}

/// An instance whose files are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostInstance {
    pub id: InstanceId,
    /// A killed command left it half removed.
    pub is_half_removed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Save the guest's state for a later resume. If that fails, shut down as with `Orderly`.
    Hibernate,
    /// Ask the agent to power off, then press Ctrl-Alt-Del, then kill the VM.
    Orderly,
    Force,
}

/// A machine that has ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// The instance's lock. `None` if the host has no such instance.
    pub lock: Option<Guard>,
    pub warning: Option<String>,
}

/// The result of a reboot.
#[derive(Debug)]
pub enum Reboot {
    /// The next machine is running.
    Restarted(Box<dyn Machine>),
    Ended,
    TimedOut(Duration),
}

/// Tells if a snapshot of a running machine can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Savable {
    Yes,
    Booting,
    /// The guest's agent has this version, which does not detect a restore.
    OldAgent(String),
}

/// A snapshot of a running machine, which is removed on drop.
#[derive(Debug)]
pub struct SavedMachine {
    pub files: Guard,
    pub restore: Restore,
    pub paused: Duration,
}

/// A connection to the machine of an instance.
pub trait Machine: Debug + Send {
    /// Waits until the guest is running, and returns the netstack's problems as sentences. The error says why the VMM
    /// could not start the guest.
    fn wait_started(&mut self) -> Result<Vec<String>, MachineError>;

    /// Waits up to `timeout` until the agent is ready, and returns true if it is. Fails if the machine ends first.
    fn wait_ready(&mut self, timeout: Duration) -> Result<bool, MachineError>;

    /// Prepares a guest for a snapshot that becomes a template. Its agent is ready.
    fn prepare_template(&mut self) -> Result<(), MachineError>;

    /// Gives a guest that started from [`Source::First`](super::Source::First) its identity, and waits up to `timeout`
    /// until its agent has applied it. Returns true if it has.
    fn personalize(&mut self, timeout: Duration) -> Result<bool, MachineError>;

    /// Returns the netstack problems that were not reported yet, as sentences.
    fn link_problems(&mut self) -> Result<Vec<String>, MachineError>;

    /// Returns the error for an agent that was not ready in time. `state` is the instance's.
    fn not_ready(&self, state: InstanceState, after: Duration) -> MachineError;
}

/// Starts, changes and ends instances. Only the files and the machine of an instance are on the host; its record is in
/// the store.
pub trait InstanceHost: Debug + Send + Sync {
    /// Waits for the lock that keeps other commands from sweeping instances that have no record yet.
    fn lock_all(&self) -> Result<Guard, NodeError>;

    /// Creates an instance without a machine, and returns its lock.
    fn create(&self, id: InstanceId) -> Result<Guard, NodeError>;

    /// Removes an instance. The caller holds its lock, or the instance never had a machine.
    fn remove(&self, id: InstanceId) -> Result<(), NodeError>;

    fn list(&self) -> Result<Vec<HostInstance>, NodeError>;

    /// Takes an instance's lock. Waits up to `timeout` for it.
    fn lock(&self, id: InstanceId, timeout: Duration) -> Result<InstanceLock, NodeError>;

    /// Takes the lock of the command that stops, terminates or freezes the instance. Returns `None` if another command
    /// holds it, or if the host has no such instance.
    fn lock_operation(&self, id: InstanceId) -> Result<Option<Guard>, NodeError>;

    /// Takes the lock of the command that attaches a volume to an instance or detaches it.
    fn lock_disk(&self, id: InstanceId, volume: VolumeId) -> Result<InstanceLock, NodeError>;

    /// Starts the machine of an instance.
    fn start(&self, plan: InstancePlan) -> Result<Box<dyn Machine>, NodeError>;

    /// Ends the machine of an instance, and takes the instance's lock.
    fn end(&self, id: InstanceId, mode: StopMode) -> Result<Ended, NodeError>;

    /// Reboots a running guest, and waits for its next machine.
    fn reboot(&self, id: InstanceId) -> Result<Reboot, NodeError>;

    /// Returns true if a machine is running, and false if the instance has ended.
    fn is_running(&self, id: InstanceId) -> Result<bool, NodeError>;

    /// Waits until the machine of a guest that is about to power off or reboot has ended.
    fn await_guest_end(&self, id: InstanceId);

    /// Returns the status of a running machine. Fails if its VMM does not answer within `timeout`.
    fn status(&self, id: InstanceId, timeout: Duration) -> Result<VmmStatus, NodeError>;

    /// Returns how the last machine ended, or `None` if that is unknown, usually because its VMM was killed.
    fn last_end(&self, id: InstanceId) -> Option<EndRecord>;

    /// Forgets how the last machine ended, so that the end is not attributed to the next one.
    fn forget_end(&self, id: InstanceId) -> Result<(), NodeError>;

    /// Returns the snapshot of a hibernated instance, which can be restored once.
    fn hibernated(&self, id: InstanceId) -> Option<Restore>;

    /// Removes the snapshot of a hibernated instance.
    fn forget_hibernated(&self, id: InstanceId) -> Result<(), NodeError>;

    /// Removes what does not outlive a stop: instance-store disks, and an incomplete snapshot.
    fn clear_stopped(&self, id: InstanceId) -> Result<(), NodeError>;

    /// Tells if a snapshot of a running machine can be taken.
    fn savable(&self, id: InstanceId) -> Result<Savable, NodeError>;

    /// Makes the running guest write its dirty pages to its disks.
    fn sync(&self, id: InstanceId) -> Result<(), NodeError>;

    /// Takes a snapshot of a running machine, whose disks continue in the new files of `disks`. The machine is paused
    /// only briefly. The caller holds the operation lock.
    fn save(&self, id: InstanceId, disks: &[VolumeDisk]) -> Result<SavedMachine, NodeError>;

    /// Hot-plugs a volume into a running machine, and binds the guest's driver to it.
    fn attach_disk(&self, id: InstanceId, disk: &VolumeDisk) -> Result<(), NodeError>;

    /// Unbinds the guest's driver from a volume and unplugs it, if the machine has it. `force` ignores a driver that does not let go.
    fn detach_disk(&self, id: InstanceId, volume: VolumeId, force: bool) -> Result<(), NodeError>;

    /// Grows the volume of a running machine.
    fn resize_disk(&self, id: InstanceId, volume: VolumeId, size: u64) -> Result<(), NodeError>;

    /// Makes a running machine continue in the files of `after`, even if its guest reboots meanwhile. If the VMM
    /// refuses, the machine continues in the files of `before`.
    fn switch_disk(&self, id: InstanceId, before: &VolumeDisk, after: &VolumeDisk) -> Result<(), NodeError>;

    /// Changes the limits of a running machine's volume, unless the machine was started without limits.
    fn limit_disk(&self, id: InstanceId, volume: VolumeId, limits: DiskLimits) -> Result<(), NodeError>;

    /// Allows or forbids a running machine to use more CPU time than it has earned. Does nothing if the machine was
    /// started without a CPU budget.
    fn set_can_owe(&self, id: InstanceId, can_owe: bool) -> Result<(), NodeError>;

    /// Replaces the configuration of a running machine's netstack. Returns the problems that the VMM reports.
    fn reload_link(&self, id: InstanceId, link: &NetstackConfig) -> Result<Vec<String>, NodeError>;

    /// Returns the readings of the instance's counters that its last machines wrote.
    fn readings(&self, id: InstanceId) -> Vec<Reading>;

    /// Returns the CPU credits of a machine that has ended, or `None` if its VMM was killed and could not save them.
    fn kept_balance(&self, id: InstanceId) -> Option<KeptBalance>;
}
