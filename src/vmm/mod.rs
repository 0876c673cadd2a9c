//! The virtual machine monitor: one Linux guest under KVM, from a [`MachineConfig`](config::MachineConfig) to its end.
//!
//! The room knows nothing of EC2, of the store or of the command line. [`machine`] is its list of contents: read
//! that first. Below it, [`boot`] puts a kernel into guest [`memory`], [`cpu`] runs virtual CPUs, [`bus`] finds
//! the device that an access is meant for, [`devices`] are the few that every PC has and [`virtio`] those that do
//! the work. [`control`] is how other processes talk to a running machine.
//!
//! What it promises: nothing that a guest does ends the process or reaches outside the guest's own memory, disks
//! and sockets; whatever ends the guest is told as one [`End`](end::End).

pub mod boot;
pub mod bounded_log;
pub mod broker;
pub mod bus;
pub mod config;
pub mod console_socket;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod disk_slots;
pub mod end;
pub mod end_record;
pub mod error;
pub mod fault;
mod freeze;
pub mod irq;
pub mod kvm;
pub mod limits;
pub mod link;
pub mod machine;
pub mod memory;
mod monitor;
pub mod passed;
mod revival;
pub mod sandbox;
mod signals;
pub mod snapshot;
pub mod sparse;
pub mod timeline;
pub mod untrusted;
pub mod usage;
pub mod virtio;
mod wiring;

pub use config::MachineConfig;
pub use end::End;
pub use error::Error;
pub use machine::Machine;
