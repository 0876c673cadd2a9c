//! The entropy device (specification, section 5.4). It fills the driver's buffers with random bytes from the host.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::epoll::EventSet;

use super::queue::{self, Buffer, QueueError};
use super::worker::{self, Serve, Wakeups, Worker};
use super::{ActivateError, Activation, EVENT_IDX, INDIRECT_DESC, QueueState, VERSION_1, VirtioDevice};
use crate::sandbox::calls::ThreadKind;

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: &[u16] = &[64];
/// Maximum number of bytes per request. A driver that needs more submits another request.
const REQUEST_LIMIT: usize = 4096;
/// Number of requests to serve before checking for a pause.
const BATCH: usize = 64;
const KICKED: u64 = 0;

#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker<RngService>>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker =
            Worker::spawn("rng", Arc::clone(&activation.clock), |wakeups| RngService::new(activation, wakeups));
        self.worker = Some(worker.map_err(|source| ActivateError { device: "rng", source })?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<QueueState> {
        worker::pause(&mut self.worker)
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        worker::resume(&mut self.worker, "rng")
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[derive(Debug)]
struct RngService {
    activation: Activation,
    wakeups: Arc<Wakeups>,
}

impl RngService {
    fn new(activation: Activation, wakeups: Arc<Wakeups>) -> io::Result<RngService> {
        for queue in &activation.queues {
            // Edge-triggered, so that the eventfd's counter does not have to be read.
            wakeups.add(queue.kick().as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, KICKED)?;
        }
        Ok(RngService { activation, wakeups })
    }

    /// Serves up to [`BATCH`] requests. Returns true if there may be more.
    fn serve_batch(&mut self) -> Result<bool, QueueError> {
        let Activation { memory, queues, .. } = &mut self.activation;
        let [requests] = queues.as_mut_slice() else { return Ok(false) };
        for _ in 0..BATCH {
            let Some(chain) = requests.pop()? else {
                requests.notify()?;
                return requests.enable_notifications();
            };
            if let Some(Buffer { address, .. }) = chain.readable.first() {
                return Err(QueueError::WrongDirection { queue: requests.index(), address: address.0 });
            }
            let mut bytes = [0_u8; REQUEST_LIMIT];
            let wanted = queue::total_length(&chain.writable).min(REQUEST_LIMIT as u64) as usize;
            let filled = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            let written = queue::write_to(memory, &chain.writable, &bytes[..filled]);
            requests.add_used(chain.head, written as u32)?;
        }
        requests.notify()?;
        Ok(true)
    }
}

impl Serve for RngService {
    const KIND: ThreadKind = ThreadKind::Rng;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
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
            if !self.wakeups.wait(timeout_ms, |_, _| {}) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::GuestFaults;
    use crate::irq::IrqLine;
    use crate::memory::{self, GuestMemory};
    use crate::virtio::interrupt::{Interrupt, status};
    use crate::virtio::queue::Virtqueue;
    use crate::virtio::queue::tests::{WRITE, endless_queue, queue_with};
    use vm_memory::{Bytes, GuestAddress};

    fn active_rng(memory: &GuestMemory, queue: Virtqueue) -> (Rng, Arc<Interrupt>, Arc<GuestFaults>) {
        let mut rng = Rng::default();
        let activation = activation(memory, queue);
        let (interrupt, faults) = (Arc::clone(&activation.interrupt), Arc::clone(&activation.faults));
        rng.activate(activation).unwrap();
        (rng, interrupt, faults)
    }

    fn activation(memory: &GuestMemory, queue: Virtqueue) -> Activation {
        Activation {
            memory: memory.clone(),
            queues: vec![queue],
            interrupt: Arc::new(Interrupt::new(IrqLine::new().unwrap())),
            features: VERSION_1,
            faults: Arc::new(GuestFaults::new("rng")),
            clock: Arc::default(),
        }
    }

    #[test]
    fn buffer_is_filled_with_random_bytes() {
        let memory = memory::allocate(64).unwrap();
        let (mut rng, ..) = active_rng(&memory, queue_with(&memory, &[(0x10_0000, 64, WRITE, 0)], &[0]));
        // The thread serves the queue once before it checks for a pause.
        assert_eq!(rng.pause()[0].next_used, 1);
        let mut bytes = [0; 64];
        memory.read_slice(&mut bytes, GuestAddress(0x10_0000)).unwrap();
        assert!(bytes.iter().filter(|byte| **byte != 0).count() > 32);
    }

    #[test]
    fn device_clock_counts_thread_time() {
        let memory = memory::allocate(64).unwrap();
        let activation = activation(&memory, queue_with(&memory, &[(0x10_0000, 64, WRITE, 0)], &[0]));
        let clock = Arc::clone(&activation.clock);
        let mut rng = Rng::default();
        rng.activate(activation).unwrap();
        rng.pause();
        assert!(clock.ns() > 0);
    }

    #[test]
    fn read_only_buffer_needs_reset() {
        let memory = memory::allocate(64).unwrap();
        let (mut rng, interrupt, faults) = active_rng(&memory, queue_with(&memory, &[(0x10_0000, 64, 0, 0)], &[0]));
        assert_eq!(rng.pause()[0].next_used, 0);
        assert_eq!(faults.count(), 1);
        assert_ne!(interrupt.device_status() & status::DEVICE_NEEDS_RESET, 0);
    }

    #[test]
    fn endless_queue_is_served_in_batches_and_pauses() {
        let memory = memory::allocate(64).unwrap();
        let endless = || endless_queue(&memory, 0, (0x10_0000, 1, WRITE));
        let mut service = RngService::new(activation(&memory, endless()), Wakeups::for_test()).unwrap();
        for turn in 1..=3 {
            assert_eq!(service.serve_batch(), Ok(true));
            assert_eq!(usize::from(service.queue_states()[0].next_avail), turn * BATCH);
        }
        let (mut rng, _, faults) = active_rng(&memory, endless());
        assert_eq!((rng.pause().len(), faults.count()), (1, 0));
    }
}
