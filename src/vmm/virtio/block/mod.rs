//! The block device (specification, section 5.2): a disk image as the guest's `/dev/vd*`.
//!
//! Each device has its own thread, so a slow disk does not stall other devices. The thread executes most requests one
//! at a time. If the host supports io_uring ([`ring`]), flushes and reads that map directly to files run concurrently
//! ([`flights`]). An I/O error fails the request; an invalid queue sets `DEVICE_NEEDS_RESET`.
//!
//! The disk is in a disk slot ([`SharedDisk`]). A device without a disk is a placeholder, which drivers skip (section
//! 4.2.2.2). If a disk is detached while the driver is using it, requests fail until the driver releases the device.

mod flights;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod request;
mod ring;
mod shared_disk;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use disk::SECTOR;
use vmm_sys_util::epoll::EventSet;

use super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::queue::{self, QueueError, Virtqueue};
use super::wakeups;
use super::worker::{self, Serve, Wakeups, Worker};
use super::{ActivateError, Activation, QueueState, VirtioDevice, read_config_bytes};
use crate::sandbox::calls::ThreadKind;
use flights::Flights;
use request::{BlockRequest, CacheMode, MAX_RANGE_SECTORS, MAX_RANGES, Submit};
pub use ring::Ring;
use shared_disk::DiskGuard;
pub use shared_disk::{Label, SharedDisk};

const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Maximum number of data buffers per request: the queue size minus header and status.
const SEGMENTS_MAX: u32 = 254;

/// Number of bytes to serve before checking for a pause. Without a limit, reads into the guest's ring could create
/// requests endlessly. Each request counts as at least [`LEAST_REQUEST`] bytes.
const BATCH: u64 = 16 << 20;
const LEAST_REQUEST: u64 = 64 << 10;

const KICKED: u64 = 0;
const COMPLETED: u64 = 1;

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
    shared_disk: Arc<SharedDisk>,
    thread_name: String,
    /// Locked by the device's thread until it pauses or ends.
    ring: Option<Arc<Mutex<Ring>>>,
    worker: Option<Worker<BlockService>>,
}

impl Block {
    /// Creates a device for a disk slot, which may be empty. Uses an io_uring if possible. `index` names the thread.
    pub fn new(shared_disk: Arc<SharedDisk>, index: usize) -> Block {
        Block::with_ring(shared_disk, index, Ring::new())
    }

    /// Without a ring, each request completes before the next starts.
    pub fn with_ring(shared_disk: Arc<SharedDisk>, index: usize, ring: Option<Ring>) -> Block {
        let ring = ring.map(|ring| Arc::new(Mutex::new(ring)));
        Block { shared_disk, thread_name: format!("block{index}"), ring, worker: None }
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
        if self.shared_disk.label().is_some() { DEVICE_TYPE } else { PLACEHOLDER }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// A placeholder offers no features, not even `VIRTIO_F_VERSION_1`, so no driver can initialize it.
    fn features(&self) -> u64 {
        let Some(disk) = self.shared_disk.label() else { return 0 };
        let access =
            if disk.read_only { feature::RO } else { feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES };
        VERSION_1 | EVENT_IDX | INDIRECT_DESC | feature::SEG_MAX | feature::BLK_SIZE | access
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some(disk) = self.shared_disk.label() {
            read_config_bytes(&config_space(disk.sectors), offset, data);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (shared_disk, ring) = (Arc::clone(&self.shared_disk), self.ring.clone());
        let worker = Worker::spawn(&self.thread_name, Arc::clone(&activation.clock), |wakeups| {
            // Edge-triggered, so that the eventfd's counter does not have to be read.
            let kicked = EventSet::IN | EventSet::EDGE_TRIGGERED;
            wakeups.add(activation.queues[0].kick().as_raw_fd(), kicked, KICKED)?;
            if let Some(ring) = &ring {
                wakeups.add(lock(ring).as_raw_fd(), EventSet::IN, COMPLETED)?;
            }
            Ok(BlockService { shared_disk, ring, activation, wakeups })
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
        if let Some(disk) = self.shared_disk.hold().disk() {
            // The disk counts and logs the error. There is no request to fail.
            let _ = disk.flush();
        }
    }
}

#[derive(Debug)]
struct BlockService {
    shared_disk: Arc<SharedDisk>,
    ring: Option<Arc<Mutex<Ring>>>,
    activation: Activation,
    wakeups: Arc<Wakeups>,
}

/// The requests in flight, and the disk, which is held until they are complete.
#[derive(Debug)]
struct BatchContext<'a> {
    // The first field, so that it is dropped, and waits for its requests, before the disk is released.
    flights: Option<Flights<'a>>,
    disk: Option<DiskGuard<'a>>,
}

impl Serve for BlockService {
    const KIND: ThreadKind = ThreadKind::Block;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
    }

    fn run(&mut self) {
        let (shared_disk, ring) = (Arc::clone(&self.shared_disk), self.ring.clone());
        let mut ring = ring.as_deref().map(lock);
        let flights = ring.as_deref_mut().map(|ring| Flights::new(ring, &self.activation.memory));
        let mut batch = BatchContext { flights, disk: None };
        let ended = self.serve_until_paused(&shared_disk, &mut batch);
        let queue = &mut self.activation.queues[0];
        if let Err(error) = ended.and(batch.finish(queue)) {
            // Complete as many earlier requests as possible.
            let _ = batch.finish(queue);
            self.activation.faults.record(&error);
            self.activation.interrupt.need_reset();
        }
    }
}

impl BlockService {
    fn serve_until_paused<'a>(
        &mut self,
        shared_disk: &'a SharedDisk,
        batch: &mut BatchContext<'a>,
    ) -> Result<(), QueueError> {
        // The loop serves before it waits, because requests may have arrived before the thread started.
        loop {
            let wait = self.serve(shared_disk, batch)?;
            // A zero wait means that there is more work. Only a longer one is throttling.
            let began = wait.filter(|wait| !wait.is_zero()).map(|_| Instant::now());
            let is_running = self.wakeups.wait(wakeups::timeout_ms(wait), |_, _| {});
            if let (Some(began), Some(label)) = (began, shared_disk.label()) {
                label.counters.throttled(began.elapsed());
            }
            if !is_running {
                return Ok(());
            }
        }
    }

    /// Completes requests and serves a batch. Returns the time to wait before the next batch, or `None` to wait for an
    /// event. During a nonzero wait, the queue is not read and driver notifications stay disabled.
    fn serve<'a>(
        &mut self,
        shared_disk: &'a SharedDisk,
        batch: &mut BatchContext<'a>,
    ) -> Result<Option<Duration>, QueueError> {
        let queue = &mut self.activation.queues[0];
        queue.disable_notifications()?;
        batch.complete(queue)?;
        let mut wait = self.begin(shared_disk, batch)?;
        let queue = &mut self.activation.queues[0];
        if let Some(flights) = &mut batch.flights {
            let was_full = flights.is_full();
            flights.submit();
            // Reads of cached data usually complete during submission.
            batch.complete(queue)?;
            if was_full && !batch.is_full() {
                wait = Some(Duration::ZERO);
            }
        }
        if batch.is_empty() {
            batch.disk = None;
        }
        queue.notify()?;
        Ok(wait)
    }

    /// Submits or executes available requests until the queue is empty, the batch is used up, or a limit is reached.
    /// Returns the time to wait, as [`BlockService::serve`] does.
    fn begin<'a>(
        &mut self,
        shared_disk: &'a SharedDisk,
        batch: &mut BatchContext<'a>,
    ) -> Result<Option<Duration>, QueueError> {
        let Activation { memory, queues, faults, features, .. } = &mut self.activation;
        let cache = cache_mode(*features);
        let queue = &mut queues[0];
        let mut left = BATCH;
        while left > 0 {
            if batch.is_full() {
                return Ok(None);
            }
            if batch.disk.is_some() && shared_disk.is_wanted() {
                batch.finish(queue)?;
            }
            let wait = shared_disk.wait_ns();
            if wait > 0 {
                return Ok(Some(Duration::from_nanos(wait)));
            }
            let Some(chain) = queue.pop()? else {
                return Ok(queue.enable_notifications()?.then_some(Duration::ZERO));
            };
            let request = BlockRequest::parse(memory, queue.index(), &chain)?;
            if let Some(bytes) = request.moved_bytes() {
                shared_disk.take(bytes);
            }
            let length = queue::total_length(&chain.readable) + queue::total_length(&chain.writable);
            left = left.saturating_sub(length.max(LEAST_REQUEST));
            let disk = batch.disk.get_or_insert_with(|| shared_disk.hold()).disk();
            if let Some(flights) = &mut batch.flights
                && let Some(disk) = &disk
            {
                // A lone cached read is cheaper synchronously than through io_uring.
                let is_alone = flights.is_empty() && queue.available()? == 0;
                match request.begin(memory, disk, flights, is_alone) {
                    Submit::InFlight => continue,
                    Submit::Done(written) => {
                        queue.add_used(chain.head, written)?;
                        continue;
                    }
                    Submit::Not => {}
                }
                // Submit first, so that the kernel works on earlier requests while this thread executes this one.
                flights.submit();
                if !flights.is_empty() && request.frees(disk) {
                    flights.drain(Some(disk), queue)?;
                }
                if request.writes() {
                    flights.wrote();
                }
            }
            let written = request.execute(memory, disk, cache, faults);
            queue.add_used(chain.head, written)?;
        }
        Ok(Some(Duration::ZERO))
    }
}

impl BatchContext<'_> {
    fn is_empty(&self) -> bool {
        self.flights.as_ref().is_none_or(Flights::is_empty)
    }

    fn is_full(&self) -> bool {
        self.flights.as_ref().is_some_and(Flights::is_full)
    }

    fn complete(&mut self, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let disk = self.disk.as_mut().and_then(DiskGuard::disk);
        self.flights.as_mut().map_or(Ok(()), |flights| flights.complete(disk.as_deref(), queue))
    }

    /// Waits for the requests in flight, and releases the disk.
    fn finish(&mut self, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let disk = self.disk.as_mut().and_then(DiskGuard::disk);
        if let Some(flights) = &mut self.flights {
            flights.drain(disk.as_deref(), queue)?;
        }
        self.disk = None;
        queue.notify()
    }
}

fn cache_mode(features: u64) -> CacheMode {
    if features & feature::FLUSH == 0 { CacheMode::WriteThrough } else { CacheMode::WriteBack }
}

/// Ignores poisoning: a thread that panicked has waited for its requests in flight.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod flights_tests;
#[cfg(test)]
mod tests;
