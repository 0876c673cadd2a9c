//! Agent of a Wisp guest, and the code that the agent and the host share.
//!
//! - [`protocol`]: messages, their frames and the connection, for the host's client (`node::guest`) and the agent.
//! - [`tree`]: files and directories as a stream of entries, read at one end and written at the other.
//! - [`agent`]: serves connections and runs commands in the guest.
//! - [`resumed`]: the message to a guest that was restored from a snapshot.
//! - [`network`]: the configuration of the guest's network interface.
//! - [`seed`]: the host's data for a new instance.
//! - [`poll`]: a typed `poll(2)`, used by both ends.
//!
//! The binary `wisp-init` is the guest's first process and calls [`agent`]. Nothing here depends on KVM or EC2.

pub mod agent;
pub mod network;
pub mod poll;
pub mod protocol;
pub mod resumed;
pub mod seed;
pub mod tree;

/// Vsock port in the guest that the agent listens on.
pub const AGENT_PORT: u32 = 1024;

/// Vsock ports that only a process with `CAP_NET_BIND_SERVICE` can bind (`LAST_RESERVED_PORT`,
/// linux/net/vmw_vsock/af_vsock.c). The host sends nothing to a guest process that connects from any other port.
pub const PRIVILEGED_PORTS: std::ops::RangeInclusive<u32> = 1..=1023;

/// I/O port of the VMM's boot timer, which records the time of each byte written to it.
pub const BOOT_TIMER_PORT: u16 = 0x6e0;

/// Written to [`BOOT_TIMER_PORT`] when the guest's first process starts.
pub const MARK_INIT_STARTED: u8 = 1;

/// Written to [`BOOT_TIMER_PORT`] when the agent accepts connections.
pub const MARK_AGENT_READY: u8 = 2;
