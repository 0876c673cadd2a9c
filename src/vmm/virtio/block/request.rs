//! Parses and executes the driver's requests, and answers them with a status byte (specification, section 5.2.6).

use vm_memory::GuestAddress;

use super::SEGMENTS_MAX;
use super::flights::{Flights, Recipient};
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;
use crate::virtio::queue::{self, Buffer, Chain, QueueError};
use disk::{Disk, SECTOR};

const HEADER: u64 = 16;
pub const ID_LENGTH: usize = 20;
/// Maximum number of sectors in one segment of a discard or write-zeroes request: 2 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;
pub const MAX_RANGES: u32 = 16;
const RANGE: u64 = 16;
/// Flag of a write-zeroes segment: the device may free the space.
const RANGE_UNMAP: u32 = 1;

mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestStatus {
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

/// The point at which a write is on stable storage (section 5.2.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Stable when a later flush completes.
    WriteBack,
    /// Stable when the write completes, because the driver did not negotiate flushes and will not send any.
    WriteThrough,
}

/// Writes a request's status byte. Returns the number of bytes written.
pub fn answer(memory: &GuestMemory, at: GuestAddress, status: RequestStatus) -> u32 {
    queue::write_to(memory, &[Buffer { address: at, length: 1 }], &[status as u8]);
    1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submit {
    /// The request must be executed synchronously.
    Not,
    InFlight,
    /// Completed, with this number of bytes written to the chain.
    Done(u32),
}

#[derive(Debug)]
pub struct BlockRequest<'a> {
    chain: &'a Chain,
    kind: u32,
    sector: u64,
    status: GuestAddress,
}

impl<'a> BlockRequest<'a> {
    /// Fails if the chain has no complete header, or no room for the status byte.
    pub fn parse(memory: &GuestMemory, queue: usize, chain: &'a Chain) -> Result<BlockRequest<'a>, QueueError> {
        let mut header = [0; HEADER as usize];
        let length = queue::read_from(memory, &chain.readable, &mut header) as u64;
        if length < HEADER {
            return Err(QueueError::TooShort { queue, length, needed: HEADER });
        }
        let last = chain.writable.last().ok_or(QueueError::TooShort { queue, length: 0, needed: 1 })?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Ok(BlockRequest {
            chain,
            kind: word(0),
            sector: u64::from(word(8)) | u64::from(word(12)) << 32,
            status: GuestAddress(last.address.0 + u64::from(last.length) - 1),
        })
    }

    /// Executes the request, or fails it without a disk. Returns the number of bytes written, including the status.
    pub fn execute(
        &self,
        memory: &GuestMemory,
        disk: Option<&mut Disk>,
        cache: CacheMode,
        faults: &GuestFaults,
    ) -> u32 {
        let Some(disk) = disk else { return answer(memory, self.status, RequestStatus::IoError) };
        let (mut status, written) = match self.kind {
            kind::IN => self.read(memory, disk, faults),
            kind::OUT => (self.write(memory, disk, faults), 0),
            kind::FLUSH => (RequestStatus::of(&disk.flush()), 0),
            kind::GET_ID => (RequestStatus::Ok, self.get_id(memory, disk)),
            kind::DISCARD | kind::WRITE_ZEROES => (self.ranges(memory, disk, faults), 0),
            _ => (RequestStatus::Unsupported, 0),
        };
        if cache == CacheMode::WriteThrough && self.writes() && status == RequestStatus::Ok {
            status = RequestStatus::of(&disk.flush());
        }
        answer(memory, self.status, status) + written
    }

    /// Submits a flush, or a read that maps directly to files. Completes a cached read that `is_alone` synchronously.
    pub fn begin(&self, memory: &GuestMemory, disk: &Disk, flights: &mut Flights, is_alone: bool) -> Submit {
        let recipient = Recipient { head: self.chain.head, status: self.status };
        match self.kind {
            kind::IN => {
                let buffers = self.data_out();
                // The driver has exceeded the device's limit, and possibly the kernel's limit for one system call.
                if buffers.len() > SEGMENTS_MAX as usize {
                    return Submit::Not;
                }
                let length = queue::total_length(&buffers);
                let Some(offset) = self.offset_on(disk, length) else { return Submit::Not };
                let Some(pieces) = disk.pieces(offset, length) else { return Submit::Not };
                if is_alone
                    && let [piece] = &pieces[..]
                    && piece.read_cached(&queue::volatile_slices(memory, &buffers))
                {
                    let result = disk.was_read(length);
                    return Submit::Done(answer(memory, self.status, RequestStatus::of(&result)) + length as u32);
                }
                if flights.read(recipient, buffers, offset, &pieces) { Submit::InFlight } else { Submit::Not }
            }
            kind::FLUSH => {
                if let Some(error) = flights.deferred_error() {
                    let result = disk.was_flushed(Err(error));
                    return Submit::Done(answer(memory, self.status, RequestStatus::of(&result)));
                }
                let Some(fd) = disk.begin_flush() else { return Submit::Not };
                flights.flush(recipient, fd);
                Submit::InFlight
            }
            _ => Submit::Not,
        }
    }

    pub fn writes(&self) -> bool {
        matches!(self.kind, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES)
    }

    /// Returns true if the request could free clusters that reads in flight use. Those reads must complete first.
    pub fn frees(&self, disk: &Disk) -> bool {
        match self.kind {
            kind::DISCARD | kind::WRITE_ZEROES => true,
            kind::OUT => disk.write_frees(self.sector.saturating_mul(SECTOR), queue::total_length(&self.data_in())),
            _ => false,
        }
    }

    /// Returns the number of bytes to charge to the rate limits, or `None` if requests of this type are not limited.
    pub fn moved_bytes(&self) -> Option<u64> {
        match self.kind {
            kind::IN => Some(queue::total_length(&self.chain.writable).saturating_sub(1)),
            kind::OUT => Some(queue::total_length(&self.chain.readable).saturating_sub(HEADER)),
            kind::DISCARD | kind::WRITE_ZEROES => Some(0),
            _ => None,
        }
    }

    fn data_out(&self) -> Vec<Buffer> {
        queue::subrange(&self.chain.writable, 0, queue::total_length(&self.chain.writable) - 1)
    }

    fn data_in(&self) -> Vec<Buffer> {
        queue::subrange(&self.chain.readable, HEADER, u64::MAX)
    }

    /// Writes the disk's ID, truncated or zero-padded to 20 bytes. Returns the number of bytes written.
    fn get_id(&self, memory: &GuestMemory, disk: &Disk) -> u32 {
        let mut id = [0; ID_LENGTH];
        let length = disk.id().len().min(ID_LENGTH);
        id[..length].copy_from_slice(&disk.id().as_bytes()[..length]);
        queue::write_to(memory, &self.data_out(), &id) as u32
    }

    fn read(&self, memory: &GuestMemory, disk: &Disk, faults: &GuestFaults) -> (RequestStatus, u32) {
        let buffers = self.data_out();
        let Some(offset) = self.checked_offset(disk, queue::total_length(&buffers), faults) else {
            return (RequestStatus::IoError, 0);
        };
        let result = disk.read(&queue::volatile_slices(memory, &buffers), offset);
        (RequestStatus::of(&result), queue::total_length(&buffers) as u32)
    }

    fn write(&self, memory: &GuestMemory, disk: &Disk, faults: &GuestFaults) -> RequestStatus {
        let buffers = self.data_in();
        if disk.is_read_only() {
            faults.record(&"a write to a read-only disk");
            return RequestStatus::IoError;
        }
        let Some(offset) = self.checked_offset(disk, queue::total_length(&buffers), faults) else {
            return RequestStatus::IoError;
        };
        RequestStatus::of(&disk.write(&queue::volatile_slices(memory, &buffers), offset))
    }

    /// Returns the request's byte offset, or records a fault if the request does not cover whole sectors of the disk.
    fn checked_offset(&self, disk: &Disk, length: u64, faults: &GuestFaults) -> Option<u64> {
        let offset = self.offset_on(disk, length);
        if offset.is_none() {
            faults.record(&format!(
                "an invalid request for {length} bytes at sector {} of a disk with {} sectors",
                self.sector,
                disk.sectors()
            ));
        }
        offset
    }

    fn offset_on(&self, disk: &Disk, length: u64) -> Option<u64> {
        let whole = length > 0 && length.is_multiple_of(SECTOR);
        let end = self.sector.checked_add(length / SECTOR)?;
        (whole && end <= disk.sectors()).then(|| self.sector * SECTOR)
    }

    fn ranges(&self, memory: &GuestMemory, disk: &mut Disk, faults: &GuestFaults) -> RequestStatus {
        let buffers = self.data_in();
        let length = queue::total_length(&buffers);
        if disk.is_read_only() {
            faults.record(&"a discard or write-zeroes request for a read-only disk");
            return RequestStatus::IoError;
        }
        if length == 0 || !length.is_multiple_of(RANGE) || length / RANGE > u64::from(MAX_RANGES) {
            faults.record(&format!("a range list with the invalid length {length}"));
            return RequestStatus::IoError;
        }
        let mut bytes = vec![0; length as usize];
        queue::read_from(memory, &buffers, &mut bytes);
        for range in bytes.chunks_exact(RANGE as usize) {
            let status = self.range(range, disk, faults);
            if status != RequestStatus::Ok {
                return status;
            }
        }
        RequestStatus::Ok
    }

    fn range(&self, bytes: &[u8], disk: &mut Disk, faults: &GuestFaults) -> RequestStatus {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sector, count, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        let end = sector.checked_add(u64::from(count));
        if count > MAX_RANGE_SECTORS || end.is_none_or(|end| end > disk.sectors()) {
            faults.record(&format!("an invalid range of {count} sectors at sector {sector}"));
            return RequestStatus::IoError;
        }
        let (offset, length) = (sector * SECTOR, u64::from(count) * SECTOR);
        match (self.kind, flags) {
            (kind::DISCARD, 0) => RequestStatus::of(&disk.discard(offset, length)),
            (kind::WRITE_ZEROES, 0 | RANGE_UNMAP) => {
                RequestStatus::of(&disk.write_zeroes(offset, length, flags == RANGE_UNMAP))
            }
            // Flags that are unknown, or not allowed for this request type (section 5.2.6.2).
            _ => RequestStatus::Unsupported,
        }
    }
}
