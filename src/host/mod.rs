//! What Wisp does to the host, and what it asks of it: its data directory, monitor processes, probes.

pub mod disk_image;
pub mod home;
pub mod monitor_process;
pub mod probe;
pub mod sparse;
