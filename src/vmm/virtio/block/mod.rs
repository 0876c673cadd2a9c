//! The block device (specification, section 5.2): a disk image as the guest's `/dev/vd*`.
//!
//! Each device has a thread of its own, so that a slow disk stalls nothing else. A host's I/O error becomes the
//! request's; a ring that is not sound becomes `DEVICE_NEEDS_RESET`.
//!
//! A device's disk lies in a [`DiskBay`] and can come and go. Without one, the device is a placeholder, which a driver
//! passes over (section 4.2.2.2); a driver that was there when the disk was taken out gets errors until it leaves.

mod bay;
mod counters;
mod disk;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod image;
mod refcounts;
mod request;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::queue::{self, QueueError};
use super::worker::{self, Serve, Wakeups, Worker};
use super::{ActivateError, Activation, QueueState, VirtioDevice, read_config_bytes};
use crate::vmm::sandbox::calls::Kind;
pub use bay::{DiskBay, Label};
pub use counters::DiskCounters;
pub use disk::{Disk, SECTOR};
pub use image::{Backing, BlockError, backing, chain, open_alone, open_to_read, virtual_size};
use request::{MAX_RANGE_SECTORS, MAX_RANGES, Request};

/// The device's id (section 5).
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Data buffers in one request: the queue less header and status.
const SEGMENTS_MAX: u32 = 254;

/// What is done before a word to pause is looked for, in bytes; a request counts as some at least. A disk that is read into
/// the ring makes requests of its own, without end.
const BATCH: u64 = 16 << 20;
const LEAST_REQUEST: u64 = 64 << 10;

/// Feature bits (section 5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Offsets in the configuration space (section 5.2.4).
mod config {
    pub const CAPACITY: usize = 0;
    pub const SEG_MAX: usize = 12;
    pub const BLK_SIZE: usize = 20;
    pub const MAX_DISCARD_SECTORS: usize = 36;
    pub const MAX_DISCARD_SEG: usize = 40;
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    pub const SIZE: usize = 60;
}

/// What a placeholder says that it is (section 4.2.2.2).
const PLACEHOLDER: u32 = 0;

/// The device.
#[derive(Debug)]
pub struct Block {
    bay: Arc<DiskBay>,
    thread_name: String,
    worker: Option<Worker<Service>>,
}

impl Block {
    /// A device for the disk in `bay`, or for one that will be there; `index` names its thread.
    pub fn new(bay: Arc<DiskBay>, index: usize) -> Block {
        Block { bay, thread_name: format!("block{index}"), worker: None }
    }
}

fn config_space(sectors: u64) -> [u8; config::SIZE] {
    let mut space = [0; config::SIZE];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(config::CAPACITY, &sectors.to_le_bytes());
    put(config::SEG_MAX, &SEGMENTS_MAX.to_le_bytes());
    put(config::BLK_SIZE, &(SECTOR as u32).to_le_bytes());
    put(config::MAX_DISCARD_SECTORS, &MAX_RANGE_SECTORS.to_le_bytes());
    put(config::MAX_DISCARD_SEG, &MAX_RANGES.to_le_bytes());
    put(config::DISCARD_SECTOR_ALIGNMENT, &1_u32.to_le_bytes());
    put(config::MAX_WRITE_ZEROES_SECTORS, &MAX_RANGE_SECTORS.to_le_bytes());
    put(config::MAX_WRITE_ZEROES_SEG, &MAX_RANGES.to_le_bytes());
    put(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
    space
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        if self.bay.label().is_some() { DEVICE_TYPE } else { PLACEHOLDER }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// A placeholder offers nothing, not even what a driver must take: none can set it up.
    fn features(&self) -> u64 {
        let Some(disk) = self.bay.label() else { return 0 };
        let access =
            if disk.read_only { feature::RO } else { feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES };
        VERSION_1 | EVENT_IDX | INDIRECT_DESC | feature::SEG_MAX | feature::BLK_SIZE | access
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some(disk) = self.bay.label() {
            read_config_bytes(&config_space(disk.sectors), offset, data);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let bay = Arc::clone(&self.bay);
        let worker = Worker::spawn(&self.thread_name, |wakeups| {
            wakeups.add(activation.queues[0].kick().as_raw_fd(), EventSet::IN, 0)?;
            Ok(Service { bay, activation, wakeups })
        });
        self.worker = Some(worker.map_err(|source| ActivateError { device: "block", source })?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<QueueState> {
        worker::pause(&mut self.worker)
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        worker::resume(&mut self.worker, "block")
    }

    fn reset(&mut self) {
        self.worker = None;
        // What the guest wrote without a flush goes to the host's page cache no later than now.
        if let Some(disk) = self.bay.hold().disk() {
            // The disk counts and logs its errors; there is nobody else to tell.
            let _ = disk.flush();
        }
    }
}

/// What the thread has.
#[derive(Debug)]
struct Service {
    bay: Arc<DiskBay>,
    activation: Activation,
    wakeups: Arc<Wakeups>,
}

impl Serve for Service {
    const KIND: Kind = Kind::Block;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
    }

    fn run(&mut self) {
        // Requests may have come before the thread was there.
        loop {
            // Reading resets the counter; there is nothing to read at the first round.
            let _ = self.activation.queues[0].kick().read();
            let wait = match self.serve() {
                Ok(wait) => wait,
                Err(error) => {
                    self.activation.faults.record(&error);
                    return self.activation.interrupt.need_reset();
                }
            };
            // What there is no time for now is not held back.
            let began = wait.filter(|wait| !wait.is_zero()).map(|_| Instant::now());
            let goes_on = self.wakeups.wait(worker::timeout_ms(wait), |_, _| {});
            if let (Some(began), Some(label)) = (began, self.bay.label()) {
                label.counters.held(began.elapsed());
            }
            if !goes_on {
                return;
            }
        }
    }
}

impl Service {
    /// Serves what is available and may be, some of it. Returns how long to wait before the rest may be: until then the
    /// queue is not looked at, and the driver need not tell of more in it.
    fn serve(&mut self) -> Result<Option<Duration>, QueueError> {
        let Activation { memory, queues, faults, .. } = &mut self.activation;
        let queue = &mut queues[0];
        let mut left = BATCH;
        queue.disable_notifications()?;
        while left > 0 {
            let wait = self.bay.wait_ns();
            if wait > 0 {
                queue.notify()?;
                return Ok(Some(Duration::from_nanos(wait)));
            }
            let Some(chain) = queue.pop()? else {
                queue.notify()?;
                return Ok(queue.enable_notifications()?.then_some(Duration::ZERO));
            };
            let request = Request::parse(memory, queue.index(), &chain)?;
            if let Some(bytes) = request.moved_bytes() {
                self.bay.take(bytes);
            }
            let written = request.execute(memory, self.bay.hold().disk(), faults);
            queue.add_used(chain.head, written)?;
            let length = queue::total_length(&chain.readable) + queue::total_length(&chain.writable);
            left = left.saturating_sub(length.max(LEAST_REQUEST));
        }
        queue.notify()?;
        Ok(Some(Duration::ZERO))
    }
}

#[cfg(test)]
mod tests;
