//! Virtio devices. In this module, "the specification" is Virtual I/O Device Version 1.2.
//!
//! [`transport`] implements what all transports have in common: device status, feature negotiation and queue setup.
//! [`mmio`] is the transport over MMIO registers. [`queue`] turns the guest's rings into validated descriptor chains. A
//! device implements [`VirtioDevice`] and does not depend on the transport.

pub mod balloon;
pub mod block;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod interrupt;
mod iovec;
pub mod mmio;
pub mod net;
pub mod queue;
#[cfg(test)]
mod queue_checks;
pub mod register;
pub mod rng;
pub mod transport;
pub mod vsock;
mod wakeups;
mod worker;

use std::fmt;
use std::sync::Arc;

use crate::cpu::time::ThreadClock;
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;
use interrupt::Interrupt;
use queue::Virtqueue;

pub use virtio_queue::QueueState;

/// Feature bits of all devices (section 6). The driver must accept `VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;

/// A device as the transport uses it. The transport calls `activate` when the driver has set `DRIVER_OK`, and again
/// only after a `reset`. In between, the device owns its queues and its thread, and `pause` and `resume` alternate. The
/// driver may access the configuration space at any time.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Returns the device ID (section 5).
    fn device_type(&self) -> u32;

    fn queue_sizes(&self) -> &'static [u16];

    /// Returns the offered feature bits, both device-specific and generic (sections 5 and 6).
    fn features(&self) -> u64;

    /// Reads from the configuration space. Bytes of `data` past its end are left unchanged.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Does nothing by default: no device here has a writable configuration field.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts serving the queues on a separate thread. Driver notifications arrive on the queues' eventfds.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes the work in progress and stops the thread. Returns the state of each queue, or an empty vector if there
    /// is no thread. Until `resume`, the device changes neither guest memory nor its own state.
    fn pause(&mut self) -> Vec<QueueState>;

    /// Starts the thread again, which also serves the requests that arrived since `pause`.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// Stops the thread and drops the queues. On return, the device no longer accesses guest memory.
    fn reset(&mut self);
}

#[derive(Debug)]
pub struct Activation {
    pub memory: GuestMemory,
    /// One queue for each entry of [`VirtioDevice::queue_sizes`], in the same order.
    pub queues: Vec<Virtqueue>,
    pub interrupt: Arc<Interrupt>,
    pub features: u64,
    /// Counts and logs the driver's protocol violations.
    pub faults: Arc<GuestFaults>,
    pub clock: Arc<ThreadClock>,
}

impl Activation {
    pub fn queue_states(&self) -> Vec<QueueState> {
        self.queues.iter().map(Virtqueue::state).collect()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot activate the {device} device: {source}")]
pub struct ActivateError {
    pub device: &'static str,
    pub source: std::io::Error,
}

fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else { return };
    if let Some(rest) = config.get(offset..) {
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }
}
