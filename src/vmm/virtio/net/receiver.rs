//! The receive queue: frames on their way to the guest (specification, section 5.1.6.3).
//!
//! The driver offers many small buffers; with `VIRTIO_NET_F_MRG_RXBUF`, a frame takes as many as it needs. If possible,
//! the receiver gathers enough for the longest frame, so that one system call can write a tap's frame directly to guest
//! memory. The frame's head goes to the VMM's memory first, and reaches the guest only if the frame may pass.

use std::collections::VecDeque;

use super::backend::Backend;
use super::frame::{MAX_FRAME, Received};
use super::header::{self, Header};
use crate::memory::GuestMemory;
use crate::virtio::iovec::IoVecs;
use crate::virtio::queue::{self, Buffer, Chain, QueueError, Virtqueue};
use netstack::HEAD_LENGTH;

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Delivered(usize),
    /// The frame was rejected, or the driver can never offer enough buffers for it.
    Dropped,
    Nothing,
    /// The driver has not offered enough buffers.
    NoBuffers,
    Closed,
}

#[derive(Debug)]
pub struct Receiver {
    queue: Virtqueue,
    is_mergeable: bool,
    /// Chains taken from the ring and not used yet.
    ready: VecDeque<Chain>,
    waiting: Option<(Header, Vec<u8>)>,
    head: [u8; HEAD_LENGTH],
    /// Overflow area for a frame longer than the available buffers. Allocated on first use.
    spill: Vec<u8>,
}

impl Receiver {
    /// `is_mergeable` is true if the driver negotiated `VIRTIO_NET_F_MRG_RXBUF`.
    pub fn new(queue: Virtqueue, is_mergeable: bool) -> Receiver {
        let (ready, spill) = (VecDeque::new(), Vec::new());
        Receiver { queue, is_mergeable, ready, waiting: None, head: [0; HEAD_LENGTH], spill }
    }

    pub fn queue(&mut self) -> &mut Virtqueue {
        &mut self.queue
    }

    pub fn state(&self) -> virtio_queue::QueueState {
        self.queue.state()
    }

    pub fn put_back(&mut self) {
        self.ready.drain(..).for_each(|_| self.queue.undo_pop());
    }

    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    pub fn deliver(&mut self, memory: &GuestMemory, header: Header, frame: Vec<u8>) -> Result<Step, QueueError> {
        debug_assert!(self.waiting.is_none(), "one frame waits at a time");
        self.waiting = Some((header, frame));
        self.deliver_waiting(memory)
    }

    pub fn deliver_waiting(&mut self, memory: &GuestMemory) -> Result<Step, QueueError> {
        let Some((header, frame)) = self.waiting.take() else { return Ok(Step::Nothing) };
        let needed = header::LENGTH + frame.len();
        if self.gather(needed)? < needed {
            if self.can_grow() {
                self.waiting = Some((header, frame));
                return Ok(Step::NoBuffers);
            }
            return Ok(Step::Dropped);
        }
        let buffers = self.buffers();
        let body = queue::subrange(&buffers, header::LENGTH as u64, frame.len() as u64);
        queue::write_to(memory, &body, &frame);
        self.publish(memory, &buffers, header, frame.len())
    }

    /// Receives a frame from the backend. `may_pass` decides from the frame's head whether the guest gets it.
    pub fn receive(
        &mut self,
        memory: &GuestMemory,
        backend: &mut Backend,
        may_pass: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Step, QueueError> {
        let capacity = self.gather(header::LENGTH + MAX_FRAME)?;
        if self.ready.is_empty() {
            return Ok(Step::NoBuffers);
        }
        let buffers = self.buffers();
        let body = queue::subrange(&buffers, (header::LENGTH + HEAD_LENGTH) as u64, MAX_FRAME as u64);
        let slices = queue::volatile_slices(memory, &body);
        let mut header = header::PLAIN;
        let mut target = IoVecs::default();
        target.push_target(&mut self.head[..]);
        target.extend_guest(&slices);
        if capacity < header::LENGTH + MAX_FRAME {
            self.spill.resize(MAX_FRAME, 0);
            target.push_target(&mut self.spill);
        }
        if !target.fit() {
            return Err(QueueError::TooShort { queue: self.queue.index(), length: 1, needed: 64 });
        }
        let length = match backend.receive(&mut header, &target, may_pass) {
            Received::Frame { length } => length,
            Received::Refused { written } => {
                // Clear the buffers, so that the guest cannot read parts of a rejected frame in them.
                let leaked = queue::subrange(&body, 0, written.saturating_sub(HEAD_LENGTH) as u64);
                queue::clear(memory, &leaked);
                return Ok(Step::Dropped);
            }
            Received::Nothing => return Ok(Step::Nothing),
            Received::Closed => return Ok(Step::Closed),
        };
        if header::LENGTH + length > capacity {
            let mut frame = target.copy_from(0);
            frame.truncate(length);
            return self.deliver(memory, header, frame);
        }
        drop(target);
        let head = &self.head[..length.min(HEAD_LENGTH)];
        let place = queue::subrange(&buffers, header::LENGTH as u64, head.len() as u64);
        queue::write_to(memory, &place, head);
        self.publish(memory, &buffers, header, length)
    }

    /// Takes chains from the ring until `wanted` bytes fit or the ring is empty. Takes at most one without mergeable
    /// buffers. Returns the room in bytes.
    fn gather(&mut self, wanted: usize) -> Result<usize, QueueError> {
        let mut room = self.ready.iter().map(|chain| queue::total_length(&chain.writable)).sum::<u64>() as usize;
        while room < wanted && (self.is_mergeable || self.ready.is_empty()) {
            let Some(chain) = self.queue.pop()? else { break };
            if let Some(Buffer { address, .. }) = chain.readable.first() {
                return Err(QueueError::WrongDirection { queue: self.queue.index(), address: address.0 });
            }
            room += queue::total_length(&chain.writable) as usize;
            self.ready.push_back(chain);
        }
        Ok(room)
    }

    /// Returns true if the driver could still offer more buffers for the same frame.
    fn can_grow(&self) -> bool {
        self.ready.is_empty() || self.is_mergeable && self.ready.len() < usize::from(self.queue.state().size)
    }

    fn buffers(&self) -> Vec<Buffer> {
        self.ready.iter().flat_map(|chain| chain.writable.iter().copied()).collect()
    }

    /// Writes the header, and marks the chains that hold the frame of `length` bytes as used.
    fn publish(
        &mut self,
        memory: &GuestMemory,
        buffers: &[Buffer],
        header: Header,
        length: usize,
    ) -> Result<Step, QueueError> {
        let mut left = (header::LENGTH + length) as u64;
        let mut used = Vec::new();
        while left > 0 {
            let Some(chain) = self.ready.pop_front() else { break };
            let written = left.min(queue::total_length(&chain.writable));
            left -= written;
            used.push((chain.head, written as u32));
        }
        let header = header::with_buffers(header, used.len() as u16);
        queue::write_to(memory, buffers, &header);
        self.queue.add_used_together(&used)?;
        Ok(Step::Delivered(length))
    }
}
