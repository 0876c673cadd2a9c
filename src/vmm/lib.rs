//! The virtual machine monitor (VMM): runs one Linux guest under KVM, from a [`MachineConfig`](config::MachineConfig)
//! to its end.
//!
//! The module is independent of EC2, the store and the command line. Start reading at [`machine`]. [`boot`] loads a
//! kernel into guest [`memory`], [`cpu`] runs the vCPUs, [`bus`] decodes addresses, [`devices`] has the PC's own
//! devices, and [`virtio`] the others. Other processes talk to a running machine through [`control`].
//!
//! A guest cannot crash the process, and cannot reach anything outside its own memory, disks and sockets. Every end of
//! a guest is reported as one [`End`](end::End).

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
mod event_loop;
pub mod fault;
mod freeze;
pub mod irq;
pub mod kvm;
pub mod limits;
pub mod machine;
pub mod memory;
pub mod netstack;
pub mod passed_files;
mod resume_message;
pub mod sandbox;
mod signals;
pub mod snapshot;
pub mod sparse;
pub mod timeline;
pub mod unix_socket;
pub mod untrusted;
pub mod usage;
pub mod virtio;
mod wiring;

pub use config::MachineConfig;
pub use end::End;
pub use error::Error;
pub use machine::Machine;
