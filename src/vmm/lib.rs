//! The virtual machine monitor (VMM): runs one Linux guest under KVM, from a [`MachineConfig`](::machine::MachineConfig)
//! to its end.
//!
//! The module is independent of EC2, the store and the command line. Start reading at [`machine`]. [`boot`] loads a
//! kernel into guest [`memory`], [`cpu`] runs the vCPUs, [`bus`] decodes addresses, [`devices`] has the PC's own
//! devices, and [`virtio`] the others. Other processes talk to a running machine through [`control`].
//!
//! A guest cannot crash the process, and cannot reach anything outside its own memory, disks and sockets. Every end of
//! a guest is reported as one [`End`](::machine::End).

pub mod boot;
pub mod bus;
pub mod console_socket;
pub mod cpu;
pub mod devices;
pub mod disk_slots;
pub mod error;
mod event_loop;
pub mod fault;
mod freeze;
pub mod irq;
pub mod kvm;
pub mod machine;
pub mod memory;
mod resume_message;
pub mod sandbox;
mod signals;
pub mod snapshot;
mod usage_recorder;
pub mod virtio;
mod wiring;

pub use self::machine::Machine;
pub use error::Error;
