//! The host's side of instances: data directory, VMM processes, networks, agent client, key pairs and host checks.

pub mod environment;
pub mod guest;
pub mod home;
pub mod instance;
pub mod key;
pub mod out_of_memory;
pub mod passt;
pub mod probe;
pub mod router;
pub mod shell;
pub mod supervisor;
pub mod vmm_process;
