//! The interface between VMM processes and the commands that control them: the machine's configuration, the control
//! protocol, and the records and files that the VMM leaves for later commands. It does not use KVM.
//!
//! Small helpers for these processes are here, too: [`descriptors`], [`environment`], [`fs`] and [`sync`].

pub mod bounded_log;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod end;
pub mod end_record;
pub mod environment;
pub mod files;
pub mod fs;
pub mod kept_balance;
pub mod launch;
pub mod limits;
pub mod network;
pub mod out_of_memory;
pub mod passed_files;
pub mod sample_time;
pub mod sandbox_record;
pub mod snapshot_files;
pub mod sync;
pub mod timeline;
pub mod unix_socket;
pub mod untrusted;
pub mod usage;

pub use config::MachineConfig;
pub use end::End;
