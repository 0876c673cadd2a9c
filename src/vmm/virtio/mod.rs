//! Virtio devices over MMIO. In this module, "the specification" is Virtual I/O Device Version 1.2.
//!
//! [`mmio`] implements the transport: registers, device status and notifications. [`queue`] turns the guest's rings
//! into validated descriptor chains. A device implements [`VirtioDevice`] and does not depend on the transport.

pub mod block;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod interrupt;
mod iovec;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod register;
pub mod rng;
pub mod vsock;
mod worker;

use std::fmt;
use std::sync::Arc;

use crate::cpu::time::ThreadClock;
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;
use interrupt::Interrupt;
use queue::Virtqueue;

pub use virtio_queue::QueueState;

/// Life cycle: any number of configuration accesses, then one `activate` when the driver has set `DRIVER_OK`, then
/// `reset`, after which the cycle can start again. Between `activate` and `reset`, the device owns its queues and its
/// thread, and `pause` and `resume` alternate.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Device ID (section 5).
    fn device_type(&self) -> u32;

    fn queue_sizes(&self) -> &'static [u16];

    /// Includes the reserved feature bits (section 6).
    fn features(&self) -> u64;

    /// Bytes of `data` past the end of the configuration space are left unchanged.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Most devices have no writable field.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts serving the queues on a separate thread. ioeventfd delivers driver notifications to the queues' eventfds.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes the work in progress. Returns the position in each queue, or an empty vector if the device is not
    /// active. Guest memory and the device's own state do not change until `resume`.
    fn pause(&mut self) -> Vec<QueueState>;

    /// Serves the requests that arrived since `pause`.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// Drops the queues and the negotiated features. On return, no device thread can touch guest memory.
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
