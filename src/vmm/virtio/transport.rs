//! The part of a transport that does not depend on its bus (specification, chapter 3): device status, feature
//! negotiation, queue setup, and the state that is saved.
//!
//! A transport decodes the accesses to its registers into calls of a [`DeviceState`], and implements [`Transport`] for
//! the machine and [`VirtioInterrupt`](super::interrupt::VirtioInterrupt) for the device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{Interrupt, VirtioInterrupt, status};
use super::queue::Virtqueue;
use super::{Activation, EVENT_IDX, QueueState, VERSION_1, VirtioDevice};
use crate::bus::BusDevice;
use crate::cpu::time::ThreadClock;
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;

/// A device's transport as the machine uses it.
pub trait Transport: BusDevice + fmt::Debug {
    /// Makes the device finish its work in progress and stop, and returns its state. The vCPUs must be paused already.
    fn pause(&mut self) -> TransportState;

    fn resume(&mut self);

    /// Restores the state of a paused device. Fails if this device's type or queues differ, or a queue is invalid.
    fn restore(&mut self, state: &TransportState) -> Result<(), String>;

    /// Stops the device permanently. On return, its thread has ended, and a block device has tried to flush its disk.
    fn shut_down(&mut self);
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransportState {
    device_type: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: usize,
    activated: bool,
    interrupt_status: u32,
    device_status: u32,
    config_generation: u32,
    queues: Vec<SavedQueue>,
}

impl TransportState {
    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct SavedQueue(#[serde(with = "QueueFields")] QueueState);

#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueState")]
struct QueueFields {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// A device, and its state as the driver sees it.
#[derive(Debug)]
pub(super) struct DeviceState {
    pub device: Box<dyn VirtioDevice>,
    pub interrupt: Arc<Interrupt>,
    pub faults: Arc<GuestFaults>,
    pub clock: Arc<ThreadClock>,
    /// The queues' notification eventfds.
    pub kicks: Vec<Arc<EventFd>>,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub queue_select: usize,
    pub(super) driver_features: u64,
    pub(super) activated: bool,
    memory: GuestMemory,
    queues: Vec<Queue>,
}

/// A field of the selected queue that the driver sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueField {
    Size(u32),
    Ready(u32),
    /// The low or high half of an address.
    Descriptors(Half),
    Available(Half),
    Used(Half),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Low(u32),
    High(u32),
}

impl Half {
    fn split(self) -> (Option<u32>, Option<u32>) {
        match self {
            Half::Low(value) => (Some(value), None),
            Half::High(value) => (None, Some(value)),
        }
    }
}

impl DeviceState {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: impl VirtioInterrupt + 'static,
        faults: Arc<GuestFaults>,
    ) -> std::io::Result<DeviceState> {
        let sizes = device.queue_sizes();
        let queues = sizes.iter().map(|size| Queue::new(*size).expect("queue sizes are powers of two")).collect();
        let kick = |_| Ok(Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?));
        let kicks = sizes.iter().map(kick).collect::<std::io::Result<_>>()?;
        Ok(DeviceState {
            device,
            interrupt: Arc::new(Interrupt::new(interrupt)),
            faults,
            clock: Arc::default(),
            kicks,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            driver_features: 0,
            activated: false,
            memory,
            queues,
        })
    }

    /// Implements [`Transport::pause`]. Calls `interrupt_status` once the device raises no more interrupts.
    pub fn pause(&mut self, interrupt_status: impl FnOnce() -> u32) -> TransportState {
        let live = if self.activated { self.device.pause() } else { Vec::new() };
        let queues = if live.is_empty() { self.queues.iter().map(Queue::state).collect() } else { live };
        TransportState {
            device_type: self.device.device_type(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            activated: self.activated,
            interrupt_status: interrupt_status(),
            device_status: self.status(),
            config_generation: self.interrupt.config_generation.load(Ordering::SeqCst),
            queues: queues.into_iter().map(SavedQueue).collect(),
        }
    }

    pub fn resume(&mut self) {
        if self.activated
            && let Err(error) = self.device.resume()
        {
            log::error!("{error}");
            self.interrupt.need_reset();
        }
    }

    /// Implements [`Transport::restore`], except for the interrupt status.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), String> {
        if state.device_type != self.device.device_type() || state.queues.len() != self.queues.len() {
            return Err(format!(
                "the snapshot has a device of type {} where this machine has a different device",
                state.device_type
            ));
        }
        for (queue, SavedQueue(saved)) in self.queues.iter_mut().zip(&state.queues) {
            if saved.max_size != queue.max_size() {
                return Err(format!(
                    "the snapshot has a queue with the maximum size {} instead of {}",
                    saved.max_size,
                    queue.max_size()
                ));
            }
            *queue = Queue::try_from(*saved).map_err(|error| error.to_string())?;
        }
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.interrupt.config_generation.store(state.config_generation, Ordering::SeqCst);
        self.interrupt.device_status.store(state.device_status, Ordering::SeqCst);
        if state.activated {
            self.activate();
        }
        Ok(())
    }

    pub fn status(&self) -> u32 {
        self.interrupt.device_status()
    }

    pub fn config_generation(&self) -> u32 {
        self.interrupt.config_generation.load(Ordering::Acquire)
    }

    pub fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select)
    }

    /// Returns the selected half of the offered feature bits. Other selectors read as 0 (section 4.2.2).
    pub fn device_features(&self) -> u32 {
        match self.device_features_select {
            0 => self.device.features() as u32,
            1 => (self.device.features() >> 32) as u32,
            _ => 0,
        }
    }

    pub fn take_features(&mut self, value: u32) {
        if self.status() & (status::FEATURES_OK | status::DRIVER) != status::DRIVER {
            return self.faults.record(&"feature bits were written outside of feature negotiation");
        }
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Sets a field of the selected queue. This is valid only between `FEATURES_OK` and `DRIVER_OK` (section 3.1.1).
    /// While the queue is ready, only [`QueueField::Ready`] can be set.
    pub fn set_up_queue(&mut self, field: QueueField) {
        if self.status() & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return self.faults.record(&"a queue register was written outside of device initialization");
        }
        let Some(queue) = self.queues.get_mut(self.queue_select) else {
            return self.faults.record(&"a register of a nonexistent queue was written");
        };
        if queue.ready() && !matches!(field, QueueField::Ready(_)) {
            return self.faults.record(&"a register of a ready queue was written");
        }
        match field {
            QueueField::Size(value) => queue.set_size(u16::try_from(value).unwrap_or(0)),
            QueueField::Ready(value) => queue.set_ready(value == 1),
            QueueField::Descriptors(half) => {
                let (low, high) = half.split();
                queue.set_desc_table_address(low, high);
            }
            QueueField::Available(half) => {
                let (low, high) = half.split();
                queue.set_avail_ring_address(low, high);
            }
            QueueField::Used(half) => {
                let (low, high) = half.split();
                queue.set_used_ring_address(low, high);
            }
        }
    }

    /// Kicks the device's thread for a notification that KVM did not handle in the kernel.
    pub fn notify(&self, queue: usize) {
        if !self.activated || self.status() & status::DEVICE_NEEDS_RESET != 0 {
            return;
        }
        if let Some(kick) = self.kicks.get(queue) {
            // The write fails only if the counter is full, and then the thread wakes up anyway.
            let _ = kick.write(1);
        }
    }

    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let before = self.status();
        // The driver may only set bits (section 2.1.1), and `DEVICE_NEEDS_RESET` belongs to the device.
        if before & !status::DEVICE_NEEDS_RESET & !value != 0 {
            return self.faults.record(&"a status bit was cleared without a reset");
        }
        let mut after = value & !status::DEVICE_NEEDS_RESET | before & status::DEVICE_NEEDS_RESET;
        let added = after & !before;
        if added & status::FEATURES_OK != 0 && !self.features_are_acceptable() {
            // The driver reads the status back and sees that the bit is not set (section 3.1.1, step 6).
            self.faults.record(&"the driver accepted a feature that was not offered, or rejected VIRTIO_F_VERSION_1");
            after &= !status::FEATURES_OK;
        }
        self.interrupt.device_status.fetch_or(after, Ordering::AcqRel);
        if added & status::DRIVER_OK != 0 && after & status::FEATURES_OK != 0 && !self.activated {
            self.activate();
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.device.features() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.set_event_idx(event_idx);
            if queue.ready() && !queue.is_valid(&self.memory) {
                self.faults.record(&format!("the rings of queue {index} are not within guest memory"));
                return self.interrupt.need_reset();
            }
            let own = Queue::try_from(queue.state()).expect("the state of a valid queue is valid");
            let interrupt = Arc::clone(&self.interrupt);
            queues.push(Virtqueue::new(index, own, self.memory.clone(), interrupt, Arc::clone(&self.kicks[index])));
        }
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features: self.driver_features,
            faults: Arc::clone(&self.faults),
            clock: Arc::clone(&self.clock),
        };
        match self.device.activate(activation) {
            Ok(()) => self.activated = true,
            Err(error) => {
                log::error!("{error}");
                self.interrupt.need_reset();
            }
        }
    }

    fn reset(&mut self) {
        if self.activated {
            self.device.reset();
        }
        self.activated = false;
        self.queues.iter_mut().for_each(QueueT::reset);
        // Discard notifications from before the reset: they are not for the new queues.
        self.kicks.iter().for_each(|kick| drop(kick.read()));
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt.device_status.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_state_keeps_format_of_existing_snapshots() {
        let queue = QueueState {
            max_size: 64,
            next_avail: 3,
            next_used: 2,
            event_idx_enabled: true,
            size: 16,
            ready: true,
            desc_table: 80,
            avail_ring: 90,
            used_ring: 100,
        };
        let state = TransportState {
            device_type: 2,
            device_features_select: 1,
            driver_features_select: 0,
            driver_features: 5,
            queue_select: 0,
            activated: true,
            interrupt_status: 1,
            device_status: 15,
            config_generation: 4,
            queues: vec![SavedQueue(queue)],
        };
        let bytes = [2, 1, 0, 5, 0, 1, 1, 15, 4, 1, 64, 3, 2, 1, 16, 1, 80, 90, 100];
        assert_eq!(postcard::to_allocvec(&state).unwrap(), bytes);
    }
}
