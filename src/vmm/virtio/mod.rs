//! Virtio devices over MMIO. In this module, "the specification" is Virtual I/O Device Version 1.2.
//!
//! [`mmio`] implements the transport: registers, device status and notifications. [`queue`] turns the guest's rings
//! into validated descriptor chains. A device implements [`VirtioDevice`] and does not depend on the transport.

pub mod block;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
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

use crate::vmm::cpu::time::ThreadClock;
use crate::vmm::fault::GuestFaults;
use crate::vmm::memory::GuestMemory;
use interrupt::Interrupt;
use queue::Virtqueue;

/// Addresses of a queue's rings, and the device's position in them.
pub use virtio_queue::QueueState;

/// A virtio device.
///
/// Life cycle: any number of configuration accesses, then one `activate` when the driver has set `DRIVER_OK`, then
/// `reset`. After `reset`, the cycle can start again.
///
/// Between `activate` and `reset` the device owns its queues and its thread, and `pause` and `resume` alternate.
/// `reset` returns only when no device thread can touch guest memory any more.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Returns the device ID (section 5).
    fn device_type(&self) -> u32;

    /// Returns the maximum size of each queue.
    fn queue_sizes(&self) -> &'static [u16];

    /// Returns the feature bits that the device offers, including the reserved ones (section 6).
    fn features(&self) -> u64;

    /// Reads from the configuration space. Bytes of `data` past the end of the space are left unchanged.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space. Most devices have no writable field.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Takes ownership of the queues and starts serving them on a separate thread. Called when the driver is ready.
    /// The driver's notifications reach the queues' eventfds inside the kernel (ioeventfd).
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes the work in progress and stops serving until `resume`. Returns the device's position in each queue, or
    /// an empty vector if the device is not active. Guest memory and the device's own state do not change until
    /// `resume`.
    fn pause(&mut self) -> Vec<QueueState>;

    /// Resumes after `pause`, and serves the requests that arrived in the meantime.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// Stops serving, drops the queues and forgets the negotiated features.
    fn reset(&mut self);
}

/// Resources that a device receives on activation.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemory,
    /// One queue for each entry of [`VirtioDevice::queue_sizes`], in the same order.
    pub queues: Vec<Virtqueue>,
    /// The device's interrupt.
    pub interrupt: Arc<Interrupt>,
    /// The negotiated features.
    pub features: u64,
    /// Counter and log of the driver's protocol violations.
    pub faults: Arc<GuestFaults>,
    /// CPU time accounting of the device's thread.
    pub clock: Arc<ThreadClock>,
}

impl Activation {
    /// Returns the device's position in each queue.
    pub fn queue_states(&self) -> Vec<QueueState> {
        self.queues.iter().map(Virtqueue::state).collect()
    }
}

/// An error during activation or resume.
#[derive(Debug, thiserror::Error)]
#[error("{device} could not be activated: {source}")]
pub struct ActivateError {
    /// The device's name.
    pub device: &'static str,
    /// The cause.
    pub source: std::io::Error,
}

/// Copies the bytes of `config` from `offset` on into `data`, up to the end of either.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else { return };
    if let Some(rest) = config.get(offset..) {
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }
}
