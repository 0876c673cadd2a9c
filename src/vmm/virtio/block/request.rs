//! Parses the driver's requests (specification, section 5.2.6), and answers them with a status byte.

use vm_memory::GuestAddress;

use crate::memory::GuestMemory;
use crate::virtio::queue::{self, Buffer, Chain, QueueError, Virtqueue};
use disk::SECTOR;

const HEADER: u64 = 16;

mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlockRequest {
    pub completion: Completion,
    pub operation: Operation,
}

/// A request's operation. Its buffers exclude the header and the status byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read {
        sector: u64,
        buffers: Vec<Buffer>,
    },
    Write {
        sector: u64,
        buffers: Vec<Buffer>,
    },
    Flush,
    GetId {
        buffers: Vec<Buffer>,
    },
    /// Discards ranges, or fills them with zeroes. The buffers hold the list of ranges.
    Ranges {
        zeroes: Zeroes,
        buffers: Vec<Buffer>,
    },
    Unsupported,
}

/// The contents of a range after a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zeroes {
    Undefined,
    Guaranteed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RequestStatus {
    Ok = 0,
    /// The disk failed or was detached, or the request is invalid.
    IoError = 1,
    Unsupported = 2,
}

impl RequestStatus {
    /// Converts a disk's result. Does not count an error, because the disk has already counted it.
    pub fn of(result: &std::io::Result<()>) -> RequestStatus {
        if result.is_ok() { RequestStatus::Ok } else { RequestStatus::IoError }
    }
}

/// The chain and the status byte of a request that has to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Completion {
    /// The chain's first descriptor.
    pub head: u16,
    pub status: GuestAddress,
}

impl Completion {
    /// Answers the request. `length` is the number of bytes that were written to its buffers.
    pub fn finish(
        self,
        memory: &GuestMemory,
        queue: &mut Virtqueue,
        status: RequestStatus,
        length: u32,
    ) -> Result<(), QueueError> {
        queue::write_to(memory, &[Buffer { address: self.status, length: 1 }], &[status as u8]);
        queue.add_used(self.head, length + 1)
    }
}

impl BlockRequest {
    /// Fails if the chain has no complete header, or no room for the status byte.
    pub fn parse(memory: &GuestMemory, queue: usize, chain: Chain) -> Result<BlockRequest, QueueError> {
        let Chain { head, mut readable, mut writable } = chain;
        let mut header = [0; HEADER as usize];
        let length = queue::read_from(memory, &readable, &mut header) as u64;
        if length < HEADER {
            return Err(QueueError::TooShort { queue, length, needed: HEADER });
        }
        queue::trim_start(&mut readable, HEADER);
        let status = queue::pop_byte(&mut writable).ok_or(QueueError::TooShort { queue, length: 0, needed: 1 })?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        let operation = match word(0) {
            kind::IN => Operation::Read { sector, buffers: writable },
            kind::OUT => Operation::Write { sector, buffers: readable },
            kind::FLUSH => Operation::Flush,
            kind::GET_ID => Operation::GetId { buffers: writable },
            kind::DISCARD => Operation::Ranges { zeroes: Zeroes::Undefined, buffers: readable },
            kind::WRITE_ZEROES => Operation::Ranges { zeroes: Zeroes::Guaranteed, buffers: readable },
            _ => Operation::Unsupported,
        };
        Ok(BlockRequest { completion: Completion { head, status }, operation })
    }

    pub fn writes(&self) -> bool {
        matches!(self.operation, Operation::Write { .. } | Operation::Ranges { .. })
    }

    /// Returns the number of bytes to charge to the rate limits, or `None` if requests of this type are not limited.
    pub fn charged_bytes(&self) -> Option<u64> {
        match &self.operation {
            Operation::Read { buffers, .. } | Operation::Write { buffers, .. } => Some(queue::total_length(buffers)),
            Operation::Ranges { .. } => Some(0),
            Operation::Flush | Operation::GetId { .. } | Operation::Unsupported => None,
        }
    }
}

/// Returns the byte offset of `sector`, or `None` if `length` bytes from there are not whole sectors of the disk.
pub(super) fn offset_on(sectors: u64, sector: u64, length: u64) -> Option<u64> {
    let whole = length > 0 && length.is_multiple_of(SECTOR);
    let end = sector.checked_add(length / SECTOR)?;
    (whole && end <= sectors).then(|| sector * SECTOR)
}
