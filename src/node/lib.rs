//! The host's side of instances: data directory, VMM processes, networks, agent client, key pairs and host checks.

pub mod guest;
pub mod home;
pub mod instance;
pub mod key;
pub mod passt;
pub mod probe;
pub mod router;
pub mod shell;
pub mod vmm_process;
