//! The block device (specification, section 5.2): a disk image as the guest's `/dev/vd*`.
//!
//! Each device has its own thread ([`service`]), so a slow disk does not stall other devices. The thread takes requests
//! from the queue, parses them ([`request`]) and submits them ([`submitter`]). If the host supports io_uring
//! ([`ring`]), flushes and reads that map directly to files run concurrently ([`uring`]). An I/O error fails the
//! request; an invalid queue sets `DEVICE_NEEDS_RESET`.
//!
//! The disk is in a disk slot ([`DiskHandle`]). A device without a disk is a placeholder, which drivers skip (section
//! 4.2.2.2). If a disk is detached while the driver is using it, requests fail until the driver releases the device.

mod disk_handle;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod request;
mod ring;
mod service;
mod submitter;
mod uring;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use disk::SECTOR;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::worker::{self, Worker};
use super::{
    ActivateError, Activation, EVENT_IDX, INDIRECT_DESC, QueueState, VERSION_1, VirtioDevice, read_config_bytes,
};
pub use disk_handle::{BorrowedDisk, DiskHandle, DiskInfo};
use machine::sync::lock;
pub use ring::Ring;
use service::{BlockService, COMPLETED, KICKED, WANTED};
use submitter::{MAX_RANGE_SECTORS, MAX_RANGES};

const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Maximum number of data buffers per request: the queue size minus header and status.
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

/// Device ID of a slot without a disk (section 4.2.2.2).
const PLACEHOLDER: u32 = 0;

#[derive(Debug)]
pub struct Block {
    disk: Arc<DiskHandle>,
    thread_name: String,
    /// Locked by the device's thread until it pauses or ends.
    ring: Option<Arc<Mutex<Ring>>>,
    worker: Option<Worker<BlockService>>,
}

impl Block {
    /// Creates a device for a disk slot, which may be empty. Uses an io_uring if possible. `index` names the thread.
    pub fn new(disk: Arc<DiskHandle>, index: usize) -> Block {
        Block::with_ring(disk, index, Ring::new())
    }

    /// Without a ring, each request completes before the next starts.
    pub fn with_ring(disk: Arc<DiskHandle>, index: usize, ring: Option<Ring>) -> Block {
        let ring = ring.map(|ring| Arc::new(Mutex::new(ring)));
        Block { disk, thread_name: format!("block{index}"), ring, worker: None }
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
        if self.disk.info().is_some() { DEVICE_TYPE } else { PLACEHOLDER }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// A placeholder offers no features, not even `VIRTIO_F_VERSION_1`, so no driver can initialize it.
    fn features(&self) -> u64 {
        let Some(disk) = self.disk.info() else { return 0 };
        let access =
            if disk.read_only { feature::RO } else { feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES };
        VERSION_1 | EVENT_IDX | INDIRECT_DESC | feature::SEG_MAX | feature::BLK_SIZE | access
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some(disk) = self.disk.info() {
            read_config_bytes(&config_space(disk.sectors), offset, data);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (disk, ring) = (Arc::clone(&self.disk), self.ring.clone());
        let worker = Worker::spawn(&self.thread_name, Arc::clone(&activation.clock), |wakeups| {
            let wanted = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
            // Edge-triggered, so that the counters of the eventfds do not have to be read.
            let kicked = EventSet::IN | EventSet::EDGE_TRIGGERED;
            wakeups.add(activation.queues[0].kick().as_raw_fd(), kicked, KICKED)?;
            wakeups.add(wanted.as_raw_fd(), kicked, WANTED)?;
            if let Some(ring) = &ring {
                wakeups.add(lock(ring).as_raw_fd(), EventSet::IN, COMPLETED)?;
            }
            Ok(BlockService { disk, ring, activation, wakeups, wanted })
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
        // On return, all writes must be in the host's page cache, even without a flush by the driver.
        if let Some(disk) = self.disk.borrow().disk() {
            // The disk counts and logs the error. There is no request to fail.
            let _ = disk.flush();
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod uring_tests;
