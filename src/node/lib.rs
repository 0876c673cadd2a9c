//! One host: data directory, images, volumes, VMM processes, networks, agent client, key pairs and host checks.
//!
//! The control plane reaches a host through [`host::Node`]. [`local::LocalNode`] implements it for this host.

pub mod bundle;
pub mod embedded;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod guest;
pub mod home;
pub mod host;
pub mod image;
pub mod image_memory;
pub mod import;
pub mod instance;
pub mod key;
pub mod local;
pub mod machine_config;
pub mod passt;
pub mod probe;
pub mod process_identity;
pub mod router;
pub mod shell;
pub mod snapshot_check;
pub mod vmm_process;
