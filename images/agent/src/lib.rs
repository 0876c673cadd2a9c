//! What the two ends of a Wisp guest's agent share, and the agent itself.
//!
//! - [`protocol`]: the messages, their frames and the connection that carries them. The host's
//!   client (`wisp::guest`) and the agent speak through it.
//! - [`tree`]: files and directories as a stream of entries, read at one end and written at the other.
//! - [`agent`]: the guest's end: serves connections, runs commands.
//! - [`resumed`]: what a guest is told that goes on after it was saved.
//! - [`network`]: how its network interface is to be set.
//! - [`seed`]: what the host tells a new instance.
//! - [`poll`]: a typed `poll(2)`, which both ends wait with.
//!
//! The binary `wisp-init` of this package is the guest's first process; it calls [`agent`].
//! Nothing here knows of KVM or of EC2.

pub mod agent;
pub mod network;
pub mod poll;
pub mod protocol;
pub mod resumed;
pub mod seed;
pub mod tree;

/// The vsock port the agent listens on in the guest.
pub const AGENT_PORT: u32 = 1024;

/// The vsock ports that only a process with `CAP_NET_BIND_SERVICE` can bind (`LAST_RESERVED_PORT`,
/// linux/net/vmw_vsock/af_vsock.c). The host tells nothing to a process of the guest whose end has another one.
pub const PRIVILEGED_PORTS: std::ops::RangeInclusive<u32> = 1..=1023;

/// The I/O port of the monitor's boot timer: it notes the time of each byte written to it.
pub const BOOT_TIMER_PORT: u16 = 0x6e0;

/// Written to [`BOOT_TIMER_PORT`] when the guest's first process runs its first instruction.
pub const MARK_INIT_STARTED: u8 = 1;

/// Written to [`BOOT_TIMER_PORT`] when the agent can be connected to.
pub const MARK_AGENT_READY: u8 = 2;
