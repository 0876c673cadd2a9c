//! Virtqueues: the guest's rings as validated descriptor chains (specification, section 2.7).
//!
//! virtio-queue reads the rings. This module validates a whole chain before a device sees it: buffers lie in guest
//! memory, no buffer is empty, readable buffers come first, and the chain ends. After a violation ([`QueueError`]), the
//! device needs a reset, because it and the driver no longer agree about the ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use crate::memory::GuestMemory;

/// A driver's violation of the ring protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    #[error("queue {queue}: invalid ring: {reason}")]
    Ring { queue: usize, reason: String },
    /// A chain with a loop, an index out of range, an invalid indirect table, or more than 4 GiB of buffers.
    #[error("queue {queue}: the chain at descriptor {head} has a loop, an invalid index or table, or over 4 GiB")]
    Endless { queue: usize, head: u16 },
    #[error("queue {queue}: the chain at descriptor {head} is empty")]
    Empty { queue: usize, head: u16 },
    #[error("queue {queue}: the buffer at {address:#x} is empty")]
    ZeroLength { queue: usize, address: u64 },
    #[error("queue {queue}: the buffer at {address:#x} with {length} bytes is outside guest memory")]
    OutsideMemory { queue: usize, address: u64, length: u32 },
    /// A device-readable buffer after a device-writable one, or a buffer of the wrong direction for this queue.
    #[error("queue {queue}: the buffer at {address:#x} has the wrong direction")]
    WrongDirection { queue: usize, address: u64 },
    #[error("queue {queue}: a chain has {length} bytes, but must have at least {needed}")]
    TooShort { queue: usize, length: u64, needed: u64 },
}

#[derive(Debug)]
pub struct Virtqueue {
    index: usize,
    queue: Queue,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    kick: Arc<EventFd>,
    /// Set if virtio-queue does not know of some used elements, so its decision whether to interrupt may be wrong.
    added_before: bool,
}

impl Virtqueue {
    /// Wraps `queue`, which must be valid for `memory` if it is ready. The driver's notifications make `kick` readable.
    pub fn new(
        index: usize,
        queue: Queue,
        memory: GuestMemory,
        interrupt: Arc<Interrupt>,
        kick: Arc<EventFd>,
    ) -> Virtqueue {
        Virtqueue { index, queue, memory, interrupt, kick, added_before: false }
    }

    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        use virtio_queue::QueueOwnedT;
        let ring = |error: virtio_queue::Error| QueueError::Ring { queue: self.index, reason: error.to_string() };
        let chain = {
            let mut available = self.queue.iter(&self.memory).map_err(ring)?;
            available.next()
        };
        chain.map(|chain| Chain::parse(self.index, chain, &self.memory)).transpose()
    }

    /// Returns the last popped chain to the queue, so that the next `pop` yields it again.
    pub fn undo_pop(&mut self) {
        use virtio_queue::QueueOwnedT;
        self.queue.go_to_previous_position();
    }

    pub fn available(&self) -> Result<u16, QueueError> {
        let ring = |error: virtio_queue::Error| QueueError::Ring { queue: self.index, reason: error.to_string() };
        let end = self.queue.avail_idx(&self.memory, Ordering::Acquire).map_err(ring)?;
        Ok(end.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Requests a notification for the next chain that the driver adds, without popping those already available.
    pub fn enable_notification_of_more(&mut self) -> Result<(), QueueError> {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_add(self.available()?));
        let enabled = self.enable_notifications();
        self.queue.set_next_avail(next);
        enabled.map(drop)
    }

    /// Marks the chain with first descriptor `head` as used, with `written` bytes written.
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue
            .add_used(&self.memory, head, written)
            .map_err(|error| QueueError::Ring { queue: self.index, reason: error.to_string() })
    }

    /// Marks several chains as used, each with its number of written bytes. The driver sees all of them or none.
    pub fn add_used_together(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((last, written), before)) = chains.split_last() else { return Ok(()) };
        let state = self.queue.state();
        let failed = |error: &dyn std::fmt::Display| QueueError::Ring { queue: self.index, reason: error.to_string() };
        let mut next = state.next_used;
        for (head, written) in before {
            // The elements, 8 bytes each, follow the ring's flags and index (section 2.7.8).
            let place = state.used_ring + 4 + 8 * u64::from(next % state.size.max(1));
            let element = u64::from(*head) | u64::from(*written) << 32;
            self.memory.write_obj(u64::to_le(element), GuestAddress(place)).map_err(|error| failed(&error))?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        // This call advances the ring's index, so the driver sees the earlier elements only now.
        self.add_used(*last, *written)?;
        self.added_before |= !before.is_empty();
        Ok(())
    }

    /// Interrupts the driver if it wants an interrupt for the elements added since the last call (section 2.7.7).
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let wanted = self
            .queue
            .needs_notification(&self.memory)
            .map_err(|error| QueueError::Ring { queue: self.index, reason: error.to_string() })?;
        // The driver may be waiting for an element that virtio-queue did not count. A spurious interrupt is harmless.
        if wanted || std::mem::take(&mut self.added_before) {
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Suppresses the driver's notifications, which the device does not need while it is polling the ring.
    pub fn disable_notifications(&mut self) -> Result<(), QueueError> {
        self.queue
            .disable_notification(&self.memory)
            .map_err(|error| QueueError::Ring { queue: self.index, reason: error.to_string() })
    }

    /// Enables notifications again. Returns true if chains arrived meanwhile, which no notification will announce.
    pub fn enable_notifications(&mut self) -> Result<bool, QueueError> {
        self.queue
            .enable_notification(&self.memory)
            .map_err(|error| QueueError::Ring { queue: self.index, reason: error.to_string() })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    pub address: GuestAddress,
    /// Never 0.
    pub length: u32,
}

/// A descriptor chain with all buffers validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The index of the first descriptor, as [`Virtqueue::add_used`] expects it.
    pub head: u16,
    /// Device-readable buffers, in order.
    pub readable: Vec<Buffer>,
    /// Device-writable buffers, in order. They follow the readable ones.
    pub writable: Vec<Buffer>,
}

impl Chain {
    fn parse(
        queue: usize,
        mut chain: DescriptorChain<&GuestMemory>,
        memory: &GuestMemory,
    ) -> Result<Chain, QueueError> {
        let head = chain.head_index();
        let mut parsed = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut has_next = true;
        for descriptor in chain.by_ref() {
            has_next = descriptor.has_next();
            let (address, length) = (descriptor.addr(), descriptor.len());
            if length == 0 {
                return Err(QueueError::ZeroLength { queue, address: address.0 });
            }
            if !memory.check_range(address, length as usize) {
                return Err(QueueError::OutsideMemory { queue, address: address.0, length });
            }
            let buffer = Buffer { address, length };
            if descriptor.is_write_only() {
                parsed.writable.push(buffer);
            } else if parsed.writable.is_empty() {
                parsed.readable.push(buffer);
            } else {
                return Err(QueueError::WrongDirection { queue, address: address.0 });
            }
        }
        match (has_next, parsed.readable.is_empty() && parsed.writable.is_empty()) {
            (true, _) => Err(QueueError::Endless { queue, head }),
            (false, true) => Err(QueueError::Empty { queue, head }),
            (false, false) => Ok(parsed),
        }
    }
}

pub fn total_length(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

/// Returns the part of `buffers` that starts after `skip` bytes and is at most `length` bytes long.
pub fn subrange(buffers: &[Buffer], skip: u64, length: u64) -> Vec<Buffer> {
    let (mut skip, mut left) = (skip, length);
    let mut part = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let size = u64::from(buffer.length);
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = (size - skip).min(left);
        if take == 0 {
            break;
        }
        part.push(Buffer { address: GuestAddress(buffer.address.0 + skip), length: take as u32 });
        left -= take;
        skip = 0;
    }
    part
}

/// Removes the first `count` bytes.
pub fn trim_start(buffers: &mut Vec<Buffer>, count: u64) {
    let mut left = count;
    let whole = buffers.iter().take_while(|buffer| {
        let length = u64::from(buffer.length);
        let is_whole = length <= left;
        left -= if is_whole { length } else { 0 };
        is_whole
    });
    let whole = whole.count();
    buffers.drain(..whole);
    if let Some(first) = buffers.first_mut() {
        first.address.0 += left;
        // Less than the buffer's length, which is a `u32`.
        first.length -= left as u32;
    }
}

/// Removes the last byte, and returns its address. Returns `None` if there is no byte.
pub fn pop_byte(buffers: &mut Vec<Buffer>) -> Option<GuestAddress> {
    let last = buffers.last_mut()?;
    last.length -= 1;
    let address = GuestAddress(last.address.0 + u64::from(last.length));
    if last.length == 0 {
        buffers.pop();
    }
    Some(address)
}

/// Copies from the start of `buffers` until `data` is full or the buffers end. Returns the number of bytes copied.
pub fn read_from(memory: &GuestMemory, buffers: &[Buffer], data: &mut [u8]) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let count = (buffer.length as usize).min(data.len() - done);
        if count == 0 || memory.read_slice(&mut data[done..done + count], buffer.address).is_err() {
            break;
        }
        done += count;
    }
    done
}

/// Copies `data` to the start of `buffers`. Returns the number of bytes that fit.
pub fn write_to(memory: &GuestMemory, buffers: &[Buffer], data: &[u8]) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let count = (buffer.length as usize).min(data.len() - done);
        if count == 0 || memory.write_slice(&data[done..done + count], buffer.address).is_err() {
            break;
        }
        done += count;
    }
    done
}

pub fn clear(memory: &GuestMemory, buffers: &[Buffer]) {
    const ZEROES: [u8; 4096] = [0; 4096];
    for Buffer { address, length } in buffers {
        for offset in (0..*length).step_by(ZEROES.len()) {
            let count = (length - offset).min(ZEROES.len() as u32) as usize;
            // The buffers were validated, so the write cannot fail.
            let _ = memory.write_slice(&ZEROES[..count], GuestAddress(address.0 + u64::from(offset)));
        }
    }
}

/// Returns the mapped memory of `buffers`. No slice is missing, because [`Chain`] has validated the buffers.
pub fn volatile_slices<'a>(memory: &'a GuestMemory, buffers: &[Buffer]) -> Vec<VolatileSlice<'a>> {
    let slices = buffers.iter().flat_map(|buffer| memory.get_slices(buffer.address, buffer.length as usize));
    slices.filter_map(Result::ok).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::irq::IrqLine;
    use crate::memory;
    use proptest::prelude::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    pub(in crate::virtio) const NEXT: u16 = 1;
    pub(in crate::virtio) const WRITE: u16 = 2;
    pub(in crate::virtio) const INDIRECT: u16 = 4;
    const SIZE: u16 = 16;
    const AHEAD: u16 = 8;

    /// Creates queue 0 as a driver would. The descriptors are stored as given, valid or not.
    pub(in crate::virtio) fn queue_with(
        memory: &GuestMemory,
        descriptors: &[(u64, u32, u16, u16)],
        heads: &[u16],
    ) -> Virtqueue {
        queue_at(memory, 0, 0, descriptors, heads)
    }

    /// Like [`queue_with`], for queue `index` at `start`: the available ring at offset 0x100, the used ring at 0x200.
    pub(in crate::virtio) fn queue_at(
        memory: &GuestMemory,
        start: u64,
        index: usize,
        descriptors: &[(u64, u32, u16, u16)],
        heads: &[u16],
    ) -> Virtqueue {
        let mock = MockSplitQueue::create(memory, GuestAddress(start), SIZE);
        for (number, &(address, length, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
            mock.desc_table().store(number as u16, descriptor).unwrap();
        }
        for (number, head) in heads.iter().enumerate() {
            mock.avail().ring().ref_at(number % SIZE as usize).unwrap().store(u16::to_le(*head));
        }
        mock.avail().idx().store(u16::to_le(heads.len() as u16));
        let mut queue: Queue = mock.create_queue().unwrap();
        // By default, the mock's used ring overlaps the end of its available ring.
        queue.set_used_ring_address(Some(start as u32 + 0x200), Some(0));
        let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
        Virtqueue::new(index, queue, memory.clone(), interrupt, Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()))
    }

    /// Creates a queue that never runs empty: both rings have the same address, so each used chain makes another one
    /// available. Every chain is one buffer with this address, length and flags.
    pub(in crate::virtio) fn endless_queue(
        memory: &GuestMemory,
        index: usize,
        (address, length, flags): (u64, u32, u16),
    ) -> Virtqueue {
        let start = 0x1000 * index as u64;
        let mut own = queue_at(memory, start, index, &[(address, length, flags, 0)], &[0; AHEAD as usize]);
        let available = own.queue.state().avail_ring;
        own.queue.set_used_ring_address(Some(available as u32), Some(0));
        own.queue.set_next_used(AHEAD);
        // The used elements overwrite the available ring, so every possible index needs a descriptor.
        let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, 0));
        for number in 0..u64::from(SIZE) {
            memory.write_obj(descriptor, GuestAddress(start + 16 * number)).unwrap();
        }
        own
    }

    fn pop(descriptors: &[(u64, u32, u16, u16)]) -> Result<Option<Chain>, QueueError> {
        queue_with(&memory::allocate(64).unwrap(), descriptors, &[0]).pop()
    }

    #[test]
    fn valid_chain_is_split_by_direction() {
        let chain = pop(&[(0x10_0000, 16, NEXT, 1), (0x20_0000, 512, NEXT | WRITE, 2), (0x30_0000, 1, WRITE, 0)]);
        let chain = chain.unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (1, 2));
        assert_eq!(total_length(&chain.writable), 513);
    }

    #[test]
    fn empty_ring_has_no_chain() {
        let memory = memory::allocate(64).unwrap();
        assert_eq!(queue_with(&memory, &[], &[]).pop(), Ok(None));
    }

    #[test]
    fn chain_with_loop_is_refused() {
        let looped = pop(&[(0x10_0000, 16, NEXT, 1), (0x20_0000, 16, NEXT, 0)]);
        assert_eq!(looped, Err(QueueError::Endless { queue: 0, head: 0 }));
    }

    #[test]
    fn chain_outside_table_is_refused() {
        assert_eq!(pop(&[(0x10_0000, 16, NEXT, 99)]), Err(QueueError::Endless { queue: 0, head: 0 }));
    }

    #[test]
    fn buffers_outside_memory_are_refused() {
        for address in [64 << 20, u64::MAX - 4, (64 << 20) - 8] {
            let outside = QueueError::OutsideMemory { queue: 0, address, length: 16 };
            assert_eq!(pop(&[(address, 16, 0, 0)]), Err(outside));
        }
    }

    #[test]
    fn zero_length_buffer_is_refused() {
        assert_eq!(pop(&[(0x10_0000, 0, 0, 0)]), Err(QueueError::ZeroLength { queue: 0, address: 0x10_0000 }));
    }

    #[test]
    fn readable_buffer_after_writable_is_refused() {
        let wrong = pop(&[(0x10_0000, 16, NEXT | WRITE, 1), (0x20_0000, 16, 0, 0)]);
        assert_eq!(wrong, Err(QueueError::WrongDirection { queue: 0, address: 0x20_0000 }));
    }

    #[test]
    fn available_index_beyond_ring_size_is_refused() {
        let memory = memory::allocate(64).unwrap();
        let mut queue = queue_with(&memory, &[(0x10_0000, 16, 0, 0)], &[0; 40]);
        assert!(matches!(queue.pop(), Err(QueueError::Ring { queue: 0, .. })));
    }

    #[test]
    fn indirect_table_is_followed_and_invalid_one_refused() {
        let memory = memory::allocate(64).unwrap();
        let inner = RawDescriptor::from(Descriptor::new(0x20_0000, 64, 0, 0));
        memory.write_obj(inner, GuestAddress(0x10_0000)).unwrap();
        let chain = queue_with(&memory, &[(0x10_0000, 16, INDIRECT, 0)], &[0]).pop().unwrap().unwrap();
        assert_eq!(chain.readable, [Buffer { address: GuestAddress(0x20_0000), length: 64 }]);
        let odd = queue_with(&memory, &[(0x10_0000, 17, INDIRECT, 0)], &[0]).pop();
        assert_eq!(odd, Err(QueueError::Endless { queue: 0, head: 0 }));
    }

    #[test]
    fn subrange_crosses_buffers() {
        let buffer = |address, length| Buffer { address: GuestAddress(address), length };
        let buffers = [buffer(0x1000, 16), buffer(0x3000, 512), buffer(0x5000, 1)];
        assert_eq!(subrange(&buffers, 10, 20), [buffer(0x100a, 6), buffer(0x3000, 14)]);
        assert_eq!(subrange(&buffers, 528, 9), [buffer(0x5000, 1)]);
        assert_eq!(subrange(&buffers, 600, 9), []);
    }

    #[test]
    fn trimmed_bytes_leave_no_empty_buffer() {
        let buffer = |address, length| Buffer { address: GuestAddress(address), length };
        let all = vec![buffer(0x1000, 16), buffer(0x3000, 512), buffer(0x5000, 1)];
        for count in [0, 1, 16, 20, 528, 529, 600] {
            let mut trimmed = all.clone();
            trim_start(&mut trimmed, count);
            assert_eq!(trimmed, subrange(&all, count, u64::MAX), "{count} bytes");
        }
        let mut rest = all;
        assert_eq!(pop_byte(&mut rest), Some(GuestAddress(0x5000)));
        assert_eq!(pop_byte(&mut rest), Some(GuestAddress(0x31ff)));
        assert_eq!(rest, [buffer(0x1000, 16), buffer(0x3000, 511)]);
        assert_eq!(pop_byte(&mut Vec::new()), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn arbitrary_rings_give_valid_chains_or_errors(
            descriptors in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u16>(), any::<u16>()), 1..16),
            heads in proptest::collection::vec(any::<u16>(), 0..40),
            shape in 0_u8..3,
        ) {
            let memory = memory::allocate(64).unwrap();
            let descriptors: Vec<_> = descriptors
                .into_iter()
                .map(|(address, length, flags, next)| match shape {
                    0 => (u64::from(address) << 8, length, flags, next),
                    1 => (u64::from(address % (64 << 20)), length % 8192, flags & 3, next % 20),
                    _ => (u64::from(address % 0x4000), length % 256 * 16, flags & 7, next % 16),
                })
                .collect();
            let heads: Vec<u16> = heads.into_iter().map(|head| if shape == 0 { head } else { head % 18 }).collect();
            let mut queue = queue_with(&memory, &descriptors, &heads);
            for _ in 0..64 {
                let Ok(Some(chain)) = queue.pop() else { continue };
                for buffer in chain.readable.iter().chain(&chain.writable) {
                    prop_assert!(buffer.length > 0);
                    prop_assert!(memory.check_range(buffer.address, buffer.length as usize));
                }
                let _ = queue.add_used(chain.head, 0);
                let _ = queue.notify();
            }
        }
    }
}
