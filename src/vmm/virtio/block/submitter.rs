//! Execution of requests: one at a time, here, or concurrently through an io_uring ([`super::uring`]).

use super::request::{BlockRequest, Operation, RequestStatus, Zeroes, offset_on};
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;
use crate::virtio::queue::{self, Buffer, QueueError, Virtqueue};
use disk::{Disk, SECTOR};

const ID_LENGTH: usize = 20;
/// Maximum number of sectors in one segment of a discard or write-zeroes request: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
pub(super) const MAX_RANGES: u32 = 16;
const RANGE: u64 = 16;
/// Flag of a write-zeroes segment: the device may free the space.
const RANGE_UNMAP: u32 = 1;

/// Executes requests. Each is answered in the queue, by [`Submitter::submit`] or a later call.
pub(super) trait Submitter {
    /// Executes or starts a request.
    fn submit(&mut self, request: BlockRequest, target: &mut Target) -> Result<(), QueueError>;

    /// Answers the started requests that have completed.
    fn complete(&mut self, disk: &Disk, queue: &mut Virtqueue) -> Result<(), QueueError>;

    /// Waits for all started requests.
    fn drain(&mut self, disk: &Disk, queue: &mut Virtqueue) -> Result<(), QueueError>;

    /// Returns true if no request can be submitted until one completes.
    fn is_full(&self) -> bool;
}

/// The disk for which requests are executed, and the queue in which they are answered.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub memory: &'a GuestMemory,
    pub disk: &'a mut Disk,
    pub queue: &'a mut Virtqueue,
    pub cache: CacheMode,
    pub faults: &'a GuestFaults,
}

/// The point at which a write is on stable storage (section 5.2.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheMode {
    /// Stable when a later flush completes.
    WriteBack,
    /// Stable when the write completes, because the driver did not negotiate flushes and will not send any.
    WriteThrough,
}

/// Completes each request before the next.
#[derive(Debug)]
pub(super) struct SyncSubmitter;

impl Submitter for SyncSubmitter {
    fn submit(&mut self, request: BlockRequest, target: &mut Target) -> Result<(), QueueError> {
        let (mut status, length) = target.execute(&request.operation);
        if target.cache == CacheMode::WriteThrough && request.writes() && status == RequestStatus::Ok {
            status = RequestStatus::of(&target.disk.flush());
        }
        request.completion.finish(target.memory, target.queue, status, length)
    }

    fn complete(&mut self, _disk: &Disk, _queue: &mut Virtqueue) -> Result<(), QueueError> {
        Ok(())
    }

    fn drain(&mut self, _disk: &Disk, _queue: &mut Virtqueue) -> Result<(), QueueError> {
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }
}

impl Target<'_> {
    /// Returns the status, and the number of bytes written to the request's buffers.
    fn execute(&mut self, operation: &Operation) -> (RequestStatus, u32) {
        match operation {
            Operation::Read { sector, buffers } => self.read(*sector, buffers),
            Operation::Write { sector, buffers } => (self.write(*sector, buffers), 0),
            Operation::Flush => (RequestStatus::of(&self.disk.flush()), 0),
            Operation::GetId { buffers } => (RequestStatus::Ok, self.get_id(buffers)),
            Operation::Ranges { zeroes, buffers } => (self.ranges(*zeroes, buffers), 0),
            Operation::Unsupported => (RequestStatus::Unsupported, 0),
        }
    }

    fn read(&self, sector: u64, buffers: &[Buffer]) -> (RequestStatus, u32) {
        let length = queue::total_length(buffers);
        let Some(offset) = self.checked_offset(sector, length) else { return (RequestStatus::IoError, 0) };
        let result = self.disk.read(&queue::volatile_slices(self.memory, buffers), offset);
        (RequestStatus::of(&result), length as u32)
    }

    fn write(&self, sector: u64, buffers: &[Buffer]) -> RequestStatus {
        if self.disk.is_read_only() {
            self.faults.record(&"a write to a read-only disk");
            return RequestStatus::IoError;
        }
        let Some(offset) = self.checked_offset(sector, queue::total_length(buffers)) else {
            return RequestStatus::IoError;
        };
        RequestStatus::of(&self.disk.write(&queue::volatile_slices(self.memory, buffers), offset))
    }

    /// Writes the disk's ID, truncated or zero-padded to 20 bytes. Returns the number of bytes written.
    fn get_id(&self, buffers: &[Buffer]) -> u32 {
        let mut id = [0; ID_LENGTH];
        let length = self.disk.id().len().min(ID_LENGTH);
        id[..length].copy_from_slice(&self.disk.id().as_bytes()[..length]);
        queue::write_to(self.memory, buffers, &id) as u32
    }

    /// Returns the request's byte offset, or records a fault if the request does not cover whole sectors of the disk.
    fn checked_offset(&self, sector: u64, length: u64) -> Option<u64> {
        let sectors = self.disk.sectors();
        let offset = offset_on(sectors, sector, length);
        if offset.is_none() {
            self.faults.record(&format!(
                "an invalid request for {length} bytes at sector {sector} of a disk with {sectors} sectors"
            ));
        }
        offset
    }

    fn ranges(&mut self, zeroes: Zeroes, buffers: &[Buffer]) -> RequestStatus {
        let length = queue::total_length(buffers);
        if self.disk.is_read_only() {
            self.faults.record(&"a discard or write-zeroes request for a read-only disk");
            return RequestStatus::IoError;
        }
        if length == 0 || !length.is_multiple_of(RANGE) || length / RANGE > u64::from(MAX_RANGES) {
            self.faults.record(&format!("a range list with the invalid length {length}"));
            return RequestStatus::IoError;
        }
        let mut bytes = vec![0; length as usize];
        queue::read_from(self.memory, buffers, &mut bytes);
        for range in bytes.chunks_exact(RANGE as usize) {
            let status = self.range(zeroes, range);
            if status != RequestStatus::Ok {
                return status;
            }
        }
        RequestStatus::Ok
    }

    fn range(&mut self, zeroes: Zeroes, bytes: &[u8]) -> RequestStatus {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sector, count, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        let end = sector.checked_add(u64::from(count));
        if count > MAX_RANGE_SECTORS || end.is_none_or(|end| end > self.disk.sectors()) {
            self.faults.record(&format!("an invalid range of {count} sectors at sector {sector}"));
            return RequestStatus::IoError;
        }
        let (offset, length) = (sector * SECTOR, u64::from(count) * SECTOR);
        match (zeroes, flags) {
            (Zeroes::Undefined, 0) => RequestStatus::of(&self.disk.discard(offset, length)),
            (Zeroes::Guaranteed, 0 | RANGE_UNMAP) => {
                RequestStatus::of(&self.disk.write_zeroes(offset, length, flags == RANGE_UNMAP))
            }
            // Flags that are unknown, or not allowed for this request type (section 5.2.6.2).
            _ => RequestStatus::Unsupported,
        }
    }
}
