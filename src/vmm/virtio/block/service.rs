//! The thread of a block device: takes requests from the queue, within the disk's rate limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::disk_handle::{DiskHandle, OwnedDisk};
use super::feature;
use super::flights::Flights;
use super::request::{BlockRequest, CacheMode, Submit};
use super::ring::Ring;
use crate::sandbox::calls::ThreadKind;
use crate::virtio::queue::{self, QueueError, Virtqueue};
use crate::virtio::worker::{self, Serve, Wakeups};
use crate::virtio::{Activation, QueueState};
use disk::Disk;

/// Number of bytes to serve before checking for a pause. Without a limit, reads into the guest's ring could create
/// requests endlessly. Each request counts as at least [`LEAST_REQUEST`] bytes.
const BATCH: u64 = 16 << 20;
const LEAST_REQUEST: u64 = 64 << 10;

pub(super) const KICKED: u64 = 0;
pub(super) const COMPLETED: u64 = 1;
/// Another thread has asked for the disk.
pub(super) const WANTED: u64 = 2;

#[derive(Debug)]
pub(super) struct BlockService {
    pub disk: Arc<DiskHandle>,
    pub ring: Option<Arc<Mutex<Ring>>>,
    pub activation: Activation,
    pub wakeups: Arc<Wakeups>,
    pub wanted: Arc<EventFd>,
}

/// The disk, and the requests in flight on it.
#[derive(Debug)]
struct Batch<'a> {
    // The first field, so that it is dropped, and waits for its requests, before the disk moves to the slot.
    flights: Option<Flights<'a>>,
    disk: OwnedDisk<'a>,
}

impl Serve for BlockService {
    const KIND: ThreadKind = ThreadKind::Block;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
    }

    fn run(&mut self) {
        let (handle, ring) = (Arc::clone(&self.disk), self.ring.clone());
        let mut ring = ring.as_deref().map(lock);
        let flights = ring.as_deref_mut().map(|ring| Flights::new(ring, &self.activation.memory));
        let mut batch = Batch { flights, disk: handle.own(&self.wanted) };
        let ended = self.serve_until_paused(&mut batch);
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
    fn serve_until_paused(&mut self, batch: &mut Batch) -> Result<(), QueueError> {
        // The loop serves before it waits, because requests may have arrived before the thread started.
        loop {
            let wait = self.serve(batch)?;
            // A zero wait means that there is more work. Only a longer one is throttling.
            let began = wait.filter(|wait| !wait.is_zero()).map(|_| Instant::now());
            let mut is_wanted = false;
            let is_running = self.wakeups.wait(worker::timeout_ms(wait), |token, _| is_wanted |= token == WANTED);
            if let (Some(began), Some(attached)) = (began, batch.disk.get()) {
                attached.disk.counters().throttled(began.elapsed());
            }
            if !is_running {
                return Ok(());
            }
            if is_wanted {
                batch.finish(&mut self.activation.queues[0])?;
                batch.disk.lend();
            }
        }
    }

    /// Completes requests and serves a batch. Returns the time to wait before the next batch, or `None` to wait for an
    /// event. During a nonzero wait, the queue is not read and driver notifications stay disabled.
    fn serve(&mut self, batch: &mut Batch) -> Result<Option<Duration>, QueueError> {
        let queue = &mut self.activation.queues[0];
        queue.disable_notifications()?;
        batch.complete(queue)?;
        let mut wait = self.begin(batch)?;
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
        if let Some(attached) = batch.disk.get() {
            attached.publish_balance();
        }
        queue.notify()?;
        Ok(wait)
    }

    /// Submits or executes available requests until the queue is empty, the batch is used up, or a limit is reached.
    /// Returns the time to wait, as [`BlockService::serve`] does.
    fn begin(&mut self, batch: &mut Batch) -> Result<Option<Duration>, QueueError> {
        let Activation { memory, queues, faults, features, .. } = &mut self.activation;
        let cache = cache_mode(*features);
        let queue = &mut queues[0];
        let mut left = BATCH;
        while left > 0 {
            if batch.is_full() {
                return Ok(None);
            }
            let mut attached = batch.disk.get();
            let wait = attached.as_mut().map_or(0, |attached| attached.wait_ns());
            if wait > 0 {
                return Ok(Some(Duration::from_nanos(wait)));
            }
            let Some(chain) = queue.pop()? else {
                return Ok(queue.enable_notifications()?.then_some(Duration::ZERO));
            };
            let request = BlockRequest::parse(memory, queue.index(), &chain)?;
            if let (Some(attached), Some(bytes)) = (&mut attached, request.moved_bytes()) {
                attached.charge(bytes);
            }
            let length = queue::total_length(&chain.readable) + queue::total_length(&chain.writable);
            left = left.saturating_sub(length.max(LEAST_REQUEST));
            let disk = attached.map(|attached| &mut attached.disk);
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

impl Batch<'_> {
    fn is_full(&self) -> bool {
        self.flights.as_ref().is_some_and(Flights::is_full)
    }

    fn complete(&mut self, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let disk: Option<&Disk> = self.disk.get().map(|attached| &attached.disk);
        self.flights.as_mut().map_or(Ok(()), |flights| flights.complete(disk, queue))
    }

    /// Waits for the requests in flight.
    fn finish(&mut self, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let disk: Option<&Disk> = self.disk.get().map(|attached| &attached.disk);
        if let Some(flights) = &mut self.flights {
            flights.drain(disk, queue)?;
        }
        queue.notify()
    }
}

fn cache_mode(features: u64) -> CacheMode {
    if features & feature::FLUSH == 0 { CacheMode::WriteThrough } else { CacheMode::WriteBack }
}

/// Ignores poisoning: a thread that panicked has waited for its requests in flight.
pub(super) fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}
