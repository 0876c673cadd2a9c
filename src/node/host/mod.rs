//! The interface between the control plane and a host ([`Node`]). Only values and opaque handles cross it: the control
//! plane sees no path in a data directory and no file descriptor.
//!
//! [`crate::local::LocalNode`] implements it for this host. Tests of the control plane implement it in memory.

mod guard;
mod images;
mod instances;
mod plan;
mod volumes;

pub use guard::Guard;
pub use images::{HostImages, ImageBuild, ImageHost, ImageImport, RootChoices, UnfinishedImage};
pub use instances::{
    Ended, HostInstance, InstanceHost, InstanceLock, Machine, Reboot, Savable, SavedMachine, StopMode,
};
pub use plan::{Connection, InstancePlan, MachineLimits, MachineShape, NetworkPlan, Source};
pub use volumes::{Layer, NewFile, VolumeDisk, VolumeFiles, VolumeHost};

use std::fmt::Debug;

use ec2::HostCapacity;

use crate::error::NodeError;

/// A host that runs instances and keeps volumes, snapshots and images.
pub trait Node: Debug + Send + Sync {
    /// Returns the usable CPUs and the available memory.
    fn capacity(&self) -> HostCapacity;

    /// Returns a number that usually differs between nodes. The search for a free public address starts there, so that
    /// two nodes rarely use the same one.
    fn address_origin(&self) -> u16;

    /// Checks that instances can be connected to a VPC's router.
    fn check_vpc_network(&self) -> Result<(), NodeError>;

    /// Checks that instances outside a VPC can have outbound connectivity.
    fn check_user_network(&self) -> Result<(), NodeError>;

    fn instances(&self) -> &dyn InstanceHost;

    fn volumes(&self) -> &dyn VolumeHost;

    fn images(&self) -> &dyn ImageHost;
}
