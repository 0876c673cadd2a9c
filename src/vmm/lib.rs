//! The virtual machine monitor (VMM): runs one Linux guest under KVM, from its
//! [`MachineConfig`](::machine::MachineConfig) to its end.
//!
//! This crate does not depend on EC2, the store or the command line. Start reading at [`machine`]. [`boot`] loads a
//! kernel into guest [`memory`], [`cpu`] runs the vCPUs, [`bus`] dispatches accesses to devices, [`devices`] implements
//! the legacy PC devices, and [`virtio`] all others. Other processes control a running machine through a socket
//! ([`control`](::machine::control)).
//!
//! No guest input may crash the process or reach anything but the machine's own memory, disks and sockets. Each guest's
//! end is reported as an [`End`](::machine::End).

mod agent_ports;
pub mod boot;
pub mod bus;
pub mod console_socket;
pub mod cpu;
pub mod devices;
pub mod disk_slots;
pub mod error;
mod event_loop;
mod eventfd;
pub mod fault;
mod freeze;
pub mod irq;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod parts;
pub mod process;
pub mod resources;
mod resume_message;
mod running;
pub mod sandbox;
mod signals;
pub mod snapshot;
mod sync;
mod usage_recorder;
pub mod virtio;
mod wiring;

pub use error::Error;
