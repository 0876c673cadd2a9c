//! Virtio devices over MMIO (Virtual I/O Device Version 1.2, "the specification" in this room).
//!
//! [`mmio`] is the transport: registers, status, notifications. [`queue`] turns a guest's rings into checked
//! descriptor chains. A device implements [`VirtioDevice`] and knows nothing of either's registers.

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

/// Where a queue is, and how far each end has come in it.
pub use virtio_queue::QueueState;

/// A device's life, in the order of its calls: any number of configuration accesses; then `activate`, once, when the
/// driver has said `DRIVER_OK`; then `reset`, after which everything may come again.
///
/// In between, `pause` and `resume` come in turn. Between `activate` and `reset` the device owns its queues and its thread. `reset` returns only
/// when no thread of the device touches guest memory any more.
pub trait VirtioDevice: Send + fmt::Debug {
    /// The device's id (section 5).
    fn device_type(&self) -> u32;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> &'static [u16];

    /// Feature bits that the device offers, its own and the reserved ones (section 6).
    fn features(&self) -> u64;

    /// Reads from the configuration space; what lies behind its end stays as it is.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space; most devices have nothing there to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: the device takes its queues and begins to serve them in a thread of its own. The driver's
    /// notifications go to the queues' eventfds, without leaving the kernel (ioeventfd).
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes what it has in hand and stops serving, until `resume`; returns where its end of each queue is, none if it
    /// is not active. Guest memory and the device's own state do not change in between.
    fn pause(&mut self) -> Vec<QueueState>;

    /// Goes on after `pause`, with what has come meanwhile.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// Stops serving, drops the queues and forgets what the driver negotiated.
    fn reset(&mut self);
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemory,
    /// One for each of [`VirtioDevice::queue_sizes`], in the same order.
    pub queues: Vec<Virtqueue>,
    /// How the device tells the driver something.
    pub interrupt: Arc<Interrupt>,
    /// Features that the driver took.
    pub features: u64,
    /// Where what the driver does wrong is counted.
    pub faults: Arc<GuestFaults>,
    /// Counts the CPU time of the device's thread.
    pub clock: Arc<ThreadClock>,
}

impl Activation {
    /// Where the device's end of each queue is.
    pub fn queue_states(&self) -> Vec<QueueState> {
        self.queues.iter().map(Virtqueue::state).collect()
    }
}

/// Why a device could not begin to serve.
#[derive(Debug, thiserror::Error)]
#[error("{device} could not be activated: {source}")]
pub struct ActivateError {
    /// Which device.
    pub device: &'static str,
    /// Why.
    pub source: std::io::Error,
}

/// Copies what of `config` lies at `offset` into `data`.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else { return };
    if let Some(rest) = config.get(offset..) {
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }
}
