//! The block device (specification, section 5.2): a disk image as the guest's `/dev/vd*`.
//!
//! Each device has a thread of its own, so that a slow disk stalls nothing else. A host's I/O error becomes the
//! request's; a ring that is not sound becomes `DEVICE_NEEDS_RESET`.

mod disk;
mod request;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::epoll::EventSet;

use super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::queue::QueueError;
use super::worker::{Wakeups, Worker};
use super::{ActivateError, Activation, VirtioDevice, read_config_bytes};
pub use disk::{BlockError, Disk, SECTOR};
use request::{ID_LENGTH, MAX_RANGE_SECTORS, MAX_RANGES, Request};

/// The device's id (section 5).
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Data buffers in one request: the queue less header and status.
const SEGMENTS_MAX: u32 = 254;

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

/// The device.
#[derive(Debug)]
pub struct Block {
    /// Shared with the thread while there is one; nobody else locks it.
    disk: Arc<Mutex<Disk>>,
    id: [u8; ID_LENGTH],
    features: u64,
    config: [u8; config::SIZE],
    thread_name: String,
    worker: Option<Worker>,
}

impl Block {
    /// A device for `disk`, which answers `GET_ID` with `id` (cut off after 20 bytes); `index` names its thread.
    pub fn new(disk: Disk, id: &str, index: usize) -> Block {
        let mut id_bytes = [0; ID_LENGTH];
        let length = id.len().min(ID_LENGTH);
        id_bytes[..length].copy_from_slice(&id.as_bytes()[..length]);
        let access =
            if disk.is_read_only() { feature::RO } else { feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES };
        Block {
            features: VERSION_1 | EVENT_IDX | INDIRECT_DESC | feature::SEG_MAX | feature::BLK_SIZE | access,
            config: config_space(&disk),
            disk: Arc::new(Mutex::new(disk)),
            id: id_bytes,
            thread_name: format!("block{index}"),
            worker: None,
        }
    }
}

fn config_space(disk: &Disk) -> [u8; config::SIZE] {
    let mut space = [0; config::SIZE];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(config::CAPACITY, &disk.sectors().to_le_bytes());
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
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let service = Service { disk: Arc::clone(&self.disk), id: self.id, activation };
        let worker = Worker::spawn(&self.thread_name, move |wakeups| service.run(&wakeups));
        self.worker = Some(worker.map_err(|source| ActivateError { device: "block", source })?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        // What the guest wrote without a flush goes to the host's page cache no later than now.
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = disk.flush() {
            log::error!("a disk could not be flushed: {error}");
        }
    }
}

/// What the thread has.
struct Service {
    disk: Arc<Mutex<Disk>>,
    id: [u8; ID_LENGTH],
    activation: Activation,
}

impl Service {
    fn run(mut self, wakeups: &Wakeups) {
        let kick = self.activation.queues[0].kick().as_raw_fd();
        if let Err(error) = wakeups.add(kick, EventSet::IN, 0) {
            log::error!("a disk's thread cannot wait for its queue: {error}");
            return self.activation.interrupt.need_reset();
        }
        let disk = Arc::clone(&self.disk);
        let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
        // Requests may have come before the thread was there.
        loop {
            // Reading resets the counter; there is nothing to read at the first round.
            let _ = self.activation.queues[0].kick().read();
            if let Err(error) = self.serve(&mut disk) {
                self.activation.faults.record(&error);
                return self.activation.interrupt.need_reset();
            }
            if !wakeups.wait(-1, |_, _| {}) {
                return;
            }
        }
    }

    /// Serves everything that is available.
    fn serve(&mut self, disk: &mut Disk) -> Result<(), QueueError> {
        let Activation { memory, queues, faults, .. } = &mut self.activation;
        let queue = &mut queues[0];
        loop {
            queue.disable_notifications()?;
            while let Some(chain) = queue.pop()? {
                let written = Request::parse(memory, queue.index(), &chain)?.execute(memory, disk, &self.id, faults);
                queue.add_used(chain.head, written)?;
            }
            queue.notify()?;
            if !queue.enable_notifications()? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
