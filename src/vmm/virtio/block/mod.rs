//! The block device (specification, section 5.2): a disk image as the guest's `/dev/vd*`.
//!
//! Each device has a thread of its own, so that a slow disk stalls nothing else. It carries requests out one after the
//! other, but for reads of what is mapped straight to files and for flushes: those are in flight together ([`flights`]),
//! where the host has io_uring ([`ring`]). A host's I/O error becomes the request's; a queue that is not sound becomes
//! `DEVICE_NEEDS_RESET`.
//!
//! A device's disk lies in a [`DiskBay`] and can come and go. Without one, the device is a placeholder, which a driver
//! passes over (section 4.2.2.2); a driver that was there when the disk was taken out gets errors until it leaves.

mod bay;
mod counters;
mod disk;
mod flights;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod image;
mod image_file;
mod lock;
mod refcounts;
mod request;
mod ring;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::queue::{self, QueueError, Virtqueue};
use super::worker::{self, Serve, Wakeups, Worker};
use super::{ActivateError, Activation, QueueState, VirtioDevice, read_config_bytes};
use crate::vmm::sandbox::calls::Kind;
use bay::Held;
pub use bay::{DiskBay, Label};
pub use counters::DiskCounters;
pub use disk::{Disk, SECTOR};
use flights::Flights;
pub use image::{Backing, BlockError, MAX_LAYERS, backing, open_alone, open_to_read, virtual_size};
pub use image_file::ImageFile;
use request::{Begun, CacheMode, MAX_RANGE_SECTORS, MAX_RANGES, Request};
pub use ring::{KERNEL_THREADS, Ring};

/// The device's id (section 5).
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Data buffers in one request: the queue less header and status.
const SEGMENTS_MAX: u32 = 254;

/// What is done before a word to pause is looked for, in bytes; a request counts as some at least. A disk that is read into
/// the ring makes requests of its own, without end.
const BATCH: u64 = 16 << 20;
const LEAST_REQUEST: u64 = 64 << 10;

/// What the thread's events mean.
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

/// What a placeholder says that it is (section 4.2.2.2).
const PLACEHOLDER: u32 = 0;

/// The device.
#[derive(Debug)]
pub struct Block {
    bay: Arc<DiskBay>,
    thread_name: String,
    /// The device's thread has it while it serves.
    ring: Option<Arc<Mutex<Ring>>>,
    worker: Option<Worker<Service>>,
}

impl Block {
    /// A device for the disk in `bay`, or for one that will be there; `index` names its thread. It has a ring, if this
    /// process may make one.
    pub fn new(bay: Arc<DiskBay>, index: usize) -> Block {
        Block::with_ring(bay, index, Ring::new())
    }

    /// The same with this ring. Without one, each request is carried out before the next begins.
    pub fn with_ring(bay: Arc<DiskBay>, index: usize, ring: Option<Ring>) -> Block {
        let ring = ring.map(|ring| Arc::new(Mutex::new(ring)));
        Block { bay, thread_name: format!("block{index}"), ring, worker: None }
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
        let (bay, ring) = (Arc::clone(&self.bay), self.ring.clone());
        let worker = Worker::spawn(&self.thread_name, Arc::clone(&activation.clock), |wakeups| {
            // Each notification is told once, so that nobody has to read the counter.
            let kicked = EventSet::IN | EventSet::EDGE_TRIGGERED;
            wakeups.add(activation.queues[0].kick().as_raw_fd(), kicked, KICKED)?;
            if let Some(ring) = &ring {
                wakeups.add(lock(ring).as_raw_fd(), EventSet::IN, COMPLETED)?;
            }
            Ok(Service { bay, ring, activation, wakeups })
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
    ring: Option<Arc<Mutex<Ring>>>,
    activation: Activation,
    wakeups: Arc<Wakeups>,
}

/// What it has in hand: requests that are in flight, and the disk for as long as there are any.
#[derive(Debug)]
struct Hand<'a> {
    // Dropped before the disk is given back.
    flights: Option<Flights<'a>>,
    disk: Option<Held<'a>>,
}

impl Serve for Service {
    const KIND: Kind = Kind::Block;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
    }

    fn run(&mut self) {
        let (bay, ring) = (Arc::clone(&self.bay), self.ring.clone());
        let mut ring = ring.as_deref().map(lock);
        let flights = ring.as_deref_mut().map(|ring| Flights::new(ring, &self.activation.memory));
        let mut hand = Hand { flights, disk: None };
        let ended = self.serve_until_paused(&bay, &mut hand);
        let queue = &mut self.activation.queues[0];
        if let Err(error) = ended.and(hand.finish(queue)) {
            // What was begun before the fault is answered as far as it can be.
            let _ = hand.finish(queue);
            self.activation.faults.record(&error);
            self.activation.interrupt.need_reset();
        }
    }
}

impl Service {
    fn serve_until_paused<'a>(&mut self, bay: &'a DiskBay, hand: &mut Hand<'a>) -> Result<(), QueueError> {
        // Requests may have come before the thread was there.
        loop {
            let wait = self.serve(bay, hand)?;
            // What there is no time for now is not held back.
            let began = wait.filter(|wait| !wait.is_zero()).map(|_| Instant::now());
            let goes_on = self.wakeups.wait(worker::timeout_ms(wait), |_, _| {});
            if let (Some(began), Some(label)) = (began, bay.label()) {
                label.counters.held(began.elapsed());
            }
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Hands back what is completed, and serves what is available and may be, some of it. Returns how long to wait before
    /// the rest may be: until then the queue is not looked at, and the driver need not tell of more in it.
    fn serve<'a>(&mut self, bay: &'a DiskBay, hand: &mut Hand<'a>) -> Result<Option<Duration>, QueueError> {
        let queue = &mut self.activation.queues[0];
        queue.disable_notifications()?;
        hand.complete(queue)?;
        let mut wait = self.begin(bay, hand)?;
        let queue = &mut self.activation.queues[0];
        if let Some(flights) = &mut hand.flights {
            let was_full = flights.is_full();
            flights.submit();
            // What the host has in memory is read already.
            hand.complete(queue)?;
            if was_full && !hand.is_full() {
                wait = Some(Duration::ZERO);
            }
        }
        if hand.is_empty() {
            hand.disk = None;
        }
        queue.notify()?;
        Ok(wait)
    }

    /// Takes requests out of the queue and begins or carries them out, until there is no more or for as long as it may.
    fn begin<'a>(&mut self, bay: &'a DiskBay, hand: &mut Hand<'a>) -> Result<Option<Duration>, QueueError> {
        let Activation { memory, queues, faults, features, .. } = &mut self.activation;
        let cache = cache_mode(*features);
        let queue = &mut queues[0];
        let mut left = BATCH;
        while left > 0 {
            // One that is completed makes room.
            if hand.is_full() {
                return Ok(None);
            }
            if hand.disk.is_some() && bay.is_wanted() {
                hand.finish(queue)?;
            }
            let wait = bay.wait_ns();
            if wait > 0 {
                return Ok(Some(Duration::from_nanos(wait)));
            }
            let Some(chain) = queue.pop()? else {
                return Ok(queue.enable_notifications()?.then_some(Duration::ZERO));
            };
            let request = Request::parse(memory, queue.index(), &chain)?;
            if let Some(bytes) = request.moved_bytes() {
                bay.take(bytes);
            }
            let length = queue::total_length(&chain.readable) + queue::total_length(&chain.writable);
            left = left.saturating_sub(length.max(LEAST_REQUEST));
            let disk = hand.disk.get_or_insert_with(|| bay.hold()).disk();
            if let Some(flights) = &mut hand.flights
                && let Some(disk) = &disk
            {
                // Sooner done than begun.
                let is_alone = flights.is_empty() && queue.available()? == 0;
                match request.begin(memory, disk, flights, is_alone) {
                    Begun::InFlight => continue,
                    Begun::Done(written) => {
                        queue.add_used(chain.head, written)?;
                        continue;
                    }
                    Begun::Not => {}
                }
                // They go on while this thread is busy.
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

impl Hand<'_> {
    fn is_empty(&self) -> bool {
        self.flights.as_ref().is_none_or(Flights::is_empty)
    }

    fn is_full(&self) -> bool {
        self.flights.as_ref().is_some_and(Flights::is_full)
    }

    /// Hands back what is completed.
    fn complete(&mut self, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let disk = self.disk.as_mut().and_then(Held::disk);
        self.flights.as_mut().map_or(Ok(()), |flights| flights.complete(disk.as_deref(), queue))
    }

    /// Waits for what is in flight, and gives the disk back.
    fn finish(&mut self, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let disk = self.disk.as_mut().and_then(Held::disk);
        if let Some(flights) = &mut self.flights {
            flights.drain(disk.as_deref(), queue)?;
        }
        self.disk = None;
        queue.notify()
    }
}

/// The cache mode that these negotiated features call for.
fn cache_mode(features: u64) -> CacheMode {
    if features & feature::FLUSH == 0 { CacheMode::WriteThrough } else { CacheMode::WriteBack }
}

/// Whoever had it and panicked has waited for what was in flight.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod flights_tests;
#[cfg(test)]
mod tests;
