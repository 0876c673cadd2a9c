//! The memory balloon (specification, section 5.5): memory that the guest frees returns to the host.
//!
//! - **Free page reporting**: the driver reports large blocks of free memory some seconds after they were freed, and
//!   waits until the device has released them. If nothing is freed, the driver sets no timer.
//! - **Inflation**: the driver gives single pages to the device. The host sets no target size (`num_pages` is 0), so
//!   Linux's driver never inflates the balloon.
//! - **Statistics**: the driver reports free and available memory on request.
//!
//! Pages are released by `madvise(2)` ([`release`](crate::memory::release::release)), and allocated again when the
//! guest accesses them. The guest can therefore never have more memory than its configuration says. The device does
//! not offer `VIRTIO_BALLOON_F_PAGE_POISON`, because it does not preserve the content of free pages. Guests that rely
//! on that content (`init_on_free`, `page_poison`) do not report pages then.

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod service;
mod statistics;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::worker::{self, Worker};
use super::{ActivateError, Activation, EVENT_IDX, QueueState, VERSION_1, VirtioDevice, read_config_bytes};
use machine::control::GuestMemoryRecord;
use machine::sync::lock;
use service::BalloonService;

const DEVICE_TYPE: u32 = 5;
/// Sizes of the inflate, deflate, statistics and reporting queues. Linux requires 32 entries of the last one. As in
/// QEMU, and as Linux expects, the queue of a feature that is not offered (free page hinting) has no number.
const QUEUE_SIZES: &[u16] = &[16, 16, 16, 32];

/// Feature bits (section 5.5.3).
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_REPORTING: u64 = 1 << 5;

/// `num_pages` and `actual` (section 5.5.4), which are both 0.
const CONFIG: [u8; 8] = [0; 8];

#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Option<Worker<BalloonService>>,
}

/// The state that the device's thread shares with the machine.
#[derive(Debug)]
struct Shared {
    /// The driver's last statistics.
    last: Mutex<Option<GuestMemoryRecord>>,
    /// The request for new statistics.
    request: EventFd,
    /// Locked while pages are released.
    releasing: Mutex<()>,
}

/// A handle for reading the guest's statistics, and for holding its pages.
#[derive(Debug, Clone)]
pub struct BalloonControl(Arc<Shared>);

impl BalloonControl {
    /// Returns the driver's last statistics. Returns `None` if there is no driver.
    pub fn statistics(&self) -> Option<GuestMemoryRecord> {
        *lock(&self.0.last)
    }

    /// Requests new statistics, without waiting for them. Does nothing if a request is pending.
    pub fn request_statistics(&self) {
        // The write fails only if the counter is full, and then a request is pending.
        let _ = self.0.request.write(1);
    }

    /// Makes the device wait before it releases pages, until the guard is dropped.
    pub fn hold_pages(&self) -> MutexGuard<'_, ()> {
        lock(&self.0.releasing)
    }
}

impl Balloon {
    pub fn new() -> io::Result<Balloon> {
        let request = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let shared = Shared { last: Mutex::default(), request, releasing: Mutex::default() };
        Ok(Balloon { shared: Arc::new(shared), worker: None })
    }

    pub fn control(&self) -> BalloonControl {
        BalloonControl(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // Without indirect descriptors, Linux allocates no memory to report free memory.
        VERSION_1 | EVENT_IDX | STATS_VQ | DEFLATE_ON_OOM | PAGE_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&CONFIG, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let shared = Arc::clone(&self.shared);
        let worker = Worker::spawn("balloon", Arc::clone(&activation.clock), |wakeups| {
            BalloonService::new(activation, shared, wakeups)
        });
        self.worker = Some(worker.map_err(|source| ActivateError { device: "balloon", source })?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<QueueState> {
        worker::pause(&mut self.worker)
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        worker::resume(&mut self.worker, "balloon")
    }

    fn reset(&mut self) {
        self.worker = None;
        *lock(&self.shared.last) = None;
    }
}
