//! The balloon's thread, which releases the pages that the driver gives to it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;

use super::statistics::{self, MAX_SIZE};
use super::{PAGE_REPORTING, STATS_VQ, Shared};
use crate::memory::release::release;
use crate::memory::{GuestMemory, PAGE};
use crate::sandbox::calls::ThreadKind;
use crate::virtio::queue::{self, Buffer, Chain, QueueError, Virtqueue};
use crate::virtio::worker::{Serve, Wakeups};
use crate::virtio::{Activation, QueueState};
use machine::sync::lock;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

const KICKED: u64 = 0;
const REQUESTED: u64 = 1;

/// Maximum number of requests per queue before the thread checks for a pause. A request can release 4 GiB.
const BATCH: usize = 8;
/// Maximum number of pages per inflate request. Linux gives 256 at a time. Pages beyond the limit are not released,
/// which is correct, because a device need not release any.
const MAX_PAGES: usize = 4096;

#[derive(Debug)]
pub(super) struct BalloonService {
    activation: Activation,
    shared: Arc<Shared>,
    wakeups: Arc<Wakeups>,
    /// True until the statistics buffer is returned to the driver.
    is_requested: bool,
}

/// A driver's error in a single request.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("page {0:#x} in the balloon is not in guest memory")]
struct NoPage(u32);

impl BalloonService {
    pub(super) fn new(
        activation: Activation,
        shared: Arc<Shared>,
        wakeups: Arc<Wakeups>,
    ) -> io::Result<BalloonService> {
        for queue in &activation.queues {
            // Edge-triggered, so that the eventfd's counter does not have to be read.
            wakeups.add(queue.kick().as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, KICKED)?;
        }
        wakeups.add(shared.request.as_raw_fd(), EventSet::IN, REQUESTED)?;
        Ok(BalloonService { activation, shared, wakeups, is_requested: false })
    }

    /// Serves up to [`BATCH`] requests of each queue. Returns true if there may be more.
    pub(super) fn serve_batch(&mut self) -> Result<bool, QueueError> {
        let mut has_more = false;
        for index in [INFLATE, DEFLATE, REPORTING] {
            has_more |= self.serve_queue(index)?;
        }
        has_more |= self.serve_statistics()?;
        Ok(has_more)
    }

    /// Returns true if the driver has accepted the queue's feature and set up the queue.
    fn is_in_use(&self, index: usize) -> bool {
        let needed = match index {
            STATISTICS => STATS_VQ,
            REPORTING => PAGE_REPORTING,
            _ => 0,
        };
        self.activation.features & needed == needed && self.activation.queues[index].state().ready
    }

    fn serve_queue(&mut self, index: usize) -> Result<bool, QueueError> {
        if !self.is_in_use(index) {
            return Ok(false);
        }
        for _ in 0..BATCH {
            let Some(chain) = self.activation.queues[index].pop()? else {
                let queue = &mut self.activation.queues[index];
                queue.notify()?;
                return queue.enable_notifications();
            };
            match index {
                INFLATE => self.inflate(&chain)?,
                // A page that leaves the balloon is allocated when the guest accesses it.
                DEFLATE => expect_readable(index, &chain)?,
                _ => self.release_reported(&chain)?,
            }
            self.activation.queues[index].add_used(chain.head, 0)?;
        }
        self.activation.queues[index].notify()?;
        Ok(true)
    }

    /// Releases pages, which the driver lists by number: each is 32 bits long, and counts pages of 4 KiB.
    fn inflate(&self, chain: &Chain) -> Result<(), QueueError> {
        expect_readable(INFLATE, chain)?;
        let Activation { memory, faults, .. } = &self.activation;
        let mut bytes = vec![0; (queue::total_length(&chain.readable) as usize).min(MAX_PAGES * 4)];
        let length = queue::read_from(memory, &chain.readable, &mut bytes);
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let mut numbers: Vec<u32> = bytes[..length].chunks_exact(4).map(number).collect();
        let _releasing = lock(&self.shared.releasing);
        if let Some(fault) = release_pages(memory, &mut numbers) {
            faults.record(&fault);
        }
        Ok(())
    }

    /// Releases the blocks of free memory that the driver reports. They are writable for the device, because it
    /// changes their content (section 5.5.6.7).
    fn release_reported(&self, chain: &Chain) -> Result<(), QueueError> {
        if let Some(Buffer { address, .. }) = chain.readable.first() {
            return Err(QueueError::WrongDirection { queue: REPORTING, address: address.0 });
        }
        let _releasing = lock(&self.shared.releasing);
        for Buffer { address, length } in &chain.writable {
            release(&self.activation.memory, *address, u64::from(*length));
        }
        Ok(())
    }

    /// Reads the driver's statistics. The driver sends new ones as soon as its buffer is returned to it, so the buffer
    /// stays in the queue until statistics are requested. No other state has to be saved in a snapshot then. Returns
    /// true if the driver has already sent new statistics.
    fn serve_statistics(&mut self) -> Result<bool, QueueError> {
        if !self.is_in_use(STATISTICS) {
            return Ok(false);
        }
        let Activation { memory, queues, .. } = &mut self.activation;
        let queue = &mut queues[STATISTICS];
        let Some(chain) = queue.pop()? else { return queue.enable_notifications() };
        expect_readable(STATISTICS, &chain)?;
        let mut bytes = [0; MAX_SIZE];
        let length = queue::read_from(memory, &chain.readable, &mut bytes);
        *lock(&self.shared.last) = Some(statistics::parse(&bytes[..length]));
        if std::mem::take(&mut self.is_requested) {
            queue.add_used(chain.head, 0)?;
            queue.notify()?;
            return queue.enable_notifications();
        }
        queue.undo_pop();
        queue.enable_notification_of_more()?;
        Ok(false)
    }

    pub(super) fn request_statistics(&mut self) {
        // Resets the counter.
        let _ = self.shared.request.read();
        self.is_requested = true;
    }
}

fn expect_readable(queue: usize, chain: &Chain) -> Result<(), QueueError> {
    let wrong = chain.writable.first();
    wrong.map_or(Ok(()), |Buffer { address, .. }| Err(QueueError::WrongDirection { queue, address: address.0 }))
}

/// Releases pages, with one call for consecutive ones. Returns a fault if one of them is not in guest memory.
fn release_pages(memory: &GuestMemory, numbers: &mut [u32]) -> Option<NoPage> {
    let address = |number: u32| GuestAddress(u64::from(number) * PAGE);
    numbers.sort_unstable();
    let is_within = |number: &u32| memory.address_in_range(address(*number));
    for run in numbers.chunk_by(|one, next| next - one <= 1 && is_within(one) == is_within(next)) {
        let count = u64::from(run[run.len() - 1] - run[0]) + 1;
        release(memory, address(run[0]), count * PAGE);
    }
    numbers.iter().copied().find(|number| !is_within(number)).map(NoPage)
}

impl Serve for BalloonService {
    const KIND: ThreadKind = ThreadKind::Balloon;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queues.iter().map(Virtqueue::state).collect()
    }

    fn run(&mut self) {
        loop {
            let timeout_ms = match self.serve_batch() {
                Ok(true) => 0,
                Ok(false) => -1,
                Err(error) => {
                    self.activation.faults.record(&error);
                    return self.activation.interrupt.need_reset();
                }
            };
            let mut is_requested = false;
            let is_running = self.wakeups.wait(timeout_ms, |token, _| is_requested |= token == REQUESTED);
            if is_requested {
                self.request_statistics();
            }
            if !is_running {
                return;
            }
        }
    }
}
