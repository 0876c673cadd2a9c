//! The thread of a block device: takes requests from the queue, within the disk's rate limits.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::disk_handle::{AttachedDisk, DiskHandle, OwnedDisk, Throttle};
use super::feature;
use super::request::{BlockRequest, RequestStatus};
use super::ring::Ring;
use super::submitter::{CacheMode, Submitter, SyncSubmitter, Target};
use super::uring::UringSubmitter;
use crate::memory::GuestMemory;
use crate::sandbox::calls::ThreadKind;
use crate::virtio::queue::{self, QueueError, Virtqueue};
use crate::virtio::wakeups::{Wakeups, timeout_ms};
use crate::virtio::worker::Serve;
use crate::virtio::{Activation, QueueState};
use machine::sync::lock;

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

impl Serve for BlockService {
    const KIND: ThreadKind = ThreadKind::Block;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
    }

    fn run(&mut self) {
        let (handle, ring) = (Arc::clone(&self.disk), self.ring.clone());
        let mut disk = handle.own(&self.wanted);
        // Dropped before the disk, so its requests in flight are complete when the disk moves to the slot.
        let mut ring = ring.as_deref().map(lock);
        let mut uring = ring.as_deref_mut().map(|ring| UringSubmitter::new(ring, &self.activation.memory));
        let submitter: &mut dyn Submitter = match &mut uring {
            Some(uring) => uring,
            None => &mut SyncSubmitter,
        };
        let ended = self.serve_until_paused(&mut disk, submitter);
        if let Err(error) = ended.and(self.finish(&mut disk, submitter)) {
            // Complete as many earlier requests as possible.
            let _ = self.finish(&mut disk, submitter);
            self.activation.faults.record(&error);
            self.activation.interrupt.need_reset();
        }
    }
}

impl BlockService {
    fn serve_until_paused(&mut self, disk: &mut OwnedDisk, submitter: &mut dyn Submitter) -> Result<(), QueueError> {
        // The loop serves before it waits, because requests may have arrived before the thread started.
        loop {
            let wait = self.serve(disk, submitter)?;
            // A zero wait means that there is more work. Only a longer one is throttling.
            let began = wait.filter(|wait| !wait.is_zero()).map(|_| Instant::now());
            let mut is_wanted = false;
            let is_running = self.wakeups.wait(timeout_ms(wait), |token, _| is_wanted |= token == WANTED);
            if let (Some(began), Some(attached)) = (began, disk.get()) {
                attached.disk.counters().throttled(began.elapsed());
            }
            if !is_running {
                return Ok(());
            }
            if is_wanted {
                self.finish(disk, submitter)?;
                disk.lend();
            }
        }
    }

    /// Completes requests and serves a batch. Returns the time to wait before the next batch, or `None` to wait for an
    /// event. During a nonzero wait, the queue is not read and driver notifications stay disabled.
    fn serve(&mut self, disk: &mut OwnedDisk, submitter: &mut dyn Submitter) -> Result<Option<Duration>, QueueError> {
        let Activation { memory, queues, faults, features, .. } = &mut self.activation;
        let queue = &mut queues[0];
        queue.disable_notifications()?;
        let wait = match disk.get() {
            Some(AttachedDisk { disk, throttle }) => {
                let mut target = Target { memory, disk, queue, cache: cache_mode(*features), faults };
                let wait = serve_disk(&mut target, throttle, submitter)?;
                throttle.publish_balance();
                wait
            }
            None => refuse(memory, queue)?,
        };
        queues[0].notify()?;
        Ok(wait)
    }

    /// Waits for the requests in flight.
    fn finish(&mut self, disk: &mut OwnedDisk, submitter: &mut dyn Submitter) -> Result<(), QueueError> {
        let queue = &mut self.activation.queues[0];
        if let Some(attached) = disk.get() {
            submitter.drain(&attached.disk, queue)?;
        }
        queue.notify()
    }
}

fn serve_disk(
    target: &mut Target,
    throttle: &mut Throttle,
    submitter: &mut dyn Submitter,
) -> Result<Option<Duration>, QueueError> {
    submitter.complete(target.disk, target.queue)?;
    let wait = submit_batch(target, throttle, submitter)?;
    let was_full = submitter.is_full();
    // Reads of cached data usually complete during submission.
    submitter.complete(target.disk, target.queue)?;
    Ok(if was_full && !submitter.is_full() { Some(Duration::ZERO) } else { wait })
}

/// Submits available requests until the queue is empty, the batch is used up, or a limit is reached. Returns the time
/// to wait, as [`BlockService::serve`] does.
fn submit_batch(
    target: &mut Target,
    throttle: &mut Throttle,
    submitter: &mut dyn Submitter,
) -> Result<Option<Duration>, QueueError> {
    let mut left = BATCH;
    while left > 0 {
        if submitter.is_full() {
            return Ok(None);
        }
        let wait = throttle.wait_ns();
        if wait > 0 {
            return Ok(Some(Duration::from_nanos(wait)));
        }
        let Some(chain) = target.queue.pop()? else { return wait_for_more(target.queue) };
        let length = queue::total_length(&chain.readable) + queue::total_length(&chain.writable);
        left = left.saturating_sub(length.max(LEAST_REQUEST));
        let request = BlockRequest::parse(target.memory, target.queue.index(), chain)?;
        if let Some(bytes) = request.charged_bytes() {
            throttle.charge(bytes);
        }
        submitter.submit(request, target)?;
    }
    Ok(Some(Duration::ZERO))
}

/// Fails a batch of requests, for a slot without a disk.
fn refuse(memory: &GuestMemory, queue: &mut Virtqueue) -> Result<Option<Duration>, QueueError> {
    for _ in 0..BATCH / LEAST_REQUEST {
        let Some(chain) = queue.pop()? else { return wait_for_more(queue) };
        let request = BlockRequest::parse(memory, queue.index(), chain)?;
        request.completion.finish(memory, queue, RequestStatus::IoError, 0)?;
    }
    Ok(Some(Duration::ZERO))
}

fn wait_for_more(queue: &mut Virtqueue) -> Result<Option<Duration>, QueueError> {
    Ok(queue.enable_notifications()?.then_some(Duration::ZERO))
}

fn cache_mode(features: u64) -> CacheMode {
    if features & feature::FLUSH == 0 { CacheMode::WriteThrough } else { CacheMode::WriteBack }
}
