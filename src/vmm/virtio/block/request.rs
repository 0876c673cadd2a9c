//! One request of virtio-blk: read from its chain, carried out on the disk, answered with a status byte
//! (specification, section 5.2.6).

use vm_memory::GuestAddress;

use super::SEGMENTS_MAX;
use super::disk::{Disk, SECTOR};
use super::flights::{Flights, Recipient};
use crate::vmm::fault::GuestFaults;
use crate::vmm::memory::GuestMemory;
use crate::vmm::virtio::queue::{self, Buffer, Chain, QueueError};

/// The size of the header before the data.
const HEADER: u64 = 16;
/// The size of the answer to `GET_ID`.
pub const ID_LENGTH: usize = 20;
/// The most sectors that one segment of a discard or of a write of zeroes covers: 2 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// The most segments in such a request.
pub const MAX_RANGES: u32 = 16;
/// The size of a segment.
const RANGE: u64 = 16;
/// A segment's flag: the space may be given back.
const RANGE_UNMAP: u32 = 1;

/// Request types.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// The answer's last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed: by the disk, or because it asked for what cannot be.
    IoError = 1,
    /// The device does not do this.
    Unsupported = 2,
}

impl Status {
    /// The status of what the host's disk did. Its errors are the host's, which the disk counts.
    pub fn of(result: &std::io::Result<()>) -> Status {
        if result.is_ok() { Status::Ok } else { Status::IoError }
    }
}

/// The moment at which a write is on stable storage (section 5.2.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// When a later flush completes.
    WriteBack,
    /// When the write completes: the driver did not negotiate flushes, and will not send any.
    WriteThrough,
}

/// Writes a request's status. Returns how many bytes that are.
pub fn answer(memory: &GuestMemory, at: GuestAddress, status: Status) -> u32 {
    queue::write_to(memory, &[Buffer { address: at, length: 1 }], &[status as u8]);
    1
}

/// What became of a request that was to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It cannot be in flight, and is to be carried out.
    Not,
    /// It will be handed back.
    InFlight,
    /// It is answered; so many bytes of its chain were written.
    Done(u32),
}

/// A request as the driver put it.
#[derive(Debug)]
pub struct Request<'a> {
    chain: &'a Chain,
    kind: u32,
    sector: u64,
    status: GuestAddress,
}

impl<'a> Request<'a> {
    /// Reads the header and finds the status byte; a chain without room for either is a fault of the ring's.
    pub fn parse(memory: &GuestMemory, queue: usize, chain: &'a Chain) -> Result<Request<'a>, QueueError> {
        let mut header = [0; HEADER as usize];
        let length = queue::read_from(memory, &chain.readable, &mut header) as u64;
        if length < HEADER {
            return Err(QueueError::TooShort { queue, length, needed: HEADER });
        }
        let last = chain.writable.last().ok_or(QueueError::TooShort { queue, length: 0, needed: 1 })?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Ok(Request {
            chain,
            kind: word(0),
            sector: u64::from(word(8)) | u64::from(word(12)) << 32,
            status: GuestAddress(last.address.0 + u64::from(last.length) - 1),
        })
    }

    /// Carries the request out; without a disk, it fails. Returns how many bytes of the chain were written, the status
    /// among them.
    pub fn execute(
        &self,
        memory: &GuestMemory,
        disk: Option<&mut Disk>,
        cache: CacheMode,
        faults: &GuestFaults,
    ) -> u32 {
        let Some(disk) = disk else { return answer(memory, self.status, Status::IoError) };
        let (mut status, written) = match self.kind {
            kind::IN => self.read(memory, disk, faults),
            kind::OUT => (self.write(memory, disk, faults), 0),
            kind::FLUSH => (Status::of(&disk.flush()), 0),
            kind::GET_ID => (Status::Ok, self.get_id(memory, disk)),
            kind::DISCARD | kind::WRITE_ZEROES => (self.ranges(memory, disk, faults), 0),
            _ => (Status::Unsupported, 0),
        };
        if cache == CacheMode::WriteThrough && self.writes() && status == Status::Ok {
            status = Status::of(&disk.flush());
        }
        answer(memory, self.status, status) + written
    }

    /// Has it begin among `flights`, if it is one that can: a read of what is mapped to files, or a flush. One that
    /// `is_alone` need not, if the host has all of it in memory.
    pub fn begin(&self, memory: &GuestMemory, disk: &Disk, flights: &mut Flights, is_alone: bool) -> Begun {
        let recipient = Recipient { head: self.chain.head, status: self.status };
        match self.kind {
            kind::IN => {
                let buffers = self.data_out();
                // More than a driver may use, and than the kernel takes at once.
                if buffers.len() > SEGMENTS_MAX as usize {
                    return Begun::Not;
                }
                let length = queue::total_length(&buffers);
                let Some(offset) = self.offset_on(disk, length) else { return Begun::Not };
                let Some(pieces) = disk.pieces(offset, length) else { return Begun::Not };
                if is_alone
                    && let [piece] = &pieces[..]
                    && piece.read_cached(&queue::volatile_slices(memory, &buffers))
                {
                    let result = disk.was_read(length);
                    return Begun::Done(answer(memory, self.status, Status::of(&result)) + length as u32);
                }
                if flights.read(recipient, buffers, offset, &pieces) { Begun::InFlight } else { Begun::Not }
            }
            kind::FLUSH => {
                if let Some(error) = flights.owed() {
                    let result = disk.was_flushed(Err(error));
                    return Begun::Done(answer(memory, self.status, Status::of(&result)));
                }
                let Some(fd) = disk.begin_flush() else { return Begun::Not };
                flights.flush(recipient, fd);
                Begun::InFlight
            }
            _ => Begun::Not,
        }
    }

    /// Whether it changes what is on the disk.
    pub fn writes(&self) -> bool {
        matches!(self.kind, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES)
    }

    /// Whether what others are reading could be put to another use by it: they have to be done before.
    pub fn frees(&self, disk: &Disk) -> bool {
        match self.kind {
            kind::DISCARD | kind::WRITE_ZEROES => true,
            kind::OUT => disk.write_frees(self.sector.saturating_mul(SECTOR), queue::total_length(&self.data_in())),
            _ => false,
        }
    }

    /// The bytes that it moves to or from the disk; none if it is none of those that limits count.
    pub fn moved_bytes(&self) -> Option<u64> {
        match self.kind {
            kind::IN => Some(queue::total_length(&self.chain.writable).saturating_sub(1)),
            kind::OUT => Some(queue::total_length(&self.chain.readable).saturating_sub(HEADER)),
            kind::DISCARD | kind::WRITE_ZEROES => Some(0),
            _ => None,
        }
    }

    /// Device-writable buffers less the status byte.
    fn data_out(&self) -> Vec<Buffer> {
        queue::subrange(&self.chain.writable, 0, queue::total_length(&self.chain.writable) - 1)
    }

    /// Device-readable buffers less the header.
    fn data_in(&self) -> Vec<Buffer> {
        queue::subrange(&self.chain.readable, HEADER, u64::MAX)
    }

    /// The id, cut off after 20 bytes or followed by zeroes.
    fn get_id(&self, memory: &GuestMemory, disk: &Disk) -> u32 {
        let mut id = [0; ID_LENGTH];
        let length = disk.id().len().min(ID_LENGTH);
        id[..length].copy_from_slice(&disk.id().as_bytes()[..length]);
        queue::write_to(memory, &self.data_out(), &id) as u32
    }

    fn read(&self, memory: &GuestMemory, disk: &Disk, faults: &GuestFaults) -> (Status, u32) {
        let buffers = self.data_out();
        let Some(offset) = self.checked_offset(disk, queue::total_length(&buffers), faults) else {
            return (Status::IoError, 0);
        };
        let result = disk.read(&queue::volatile_slices(memory, &buffers), offset);
        (Status::of(&result), queue::total_length(&buffers) as u32)
    }

    fn write(&self, memory: &GuestMemory, disk: &Disk, faults: &GuestFaults) -> Status {
        let buffers = self.data_in();
        if disk.is_read_only() {
            faults.record(&"a write to a read-only disk");
            return Status::IoError;
        }
        let Some(offset) = self.checked_offset(disk, queue::total_length(&buffers), faults) else {
            return Status::IoError;
        };
        Status::of(&disk.write(&queue::volatile_slices(memory, &buffers), offset))
    }

    /// The byte offset of the request, if its whole sectors lie on the disk.
    fn checked_offset(&self, disk: &Disk, length: u64, faults: &GuestFaults) -> Option<u64> {
        let offset = self.offset_on(disk, length);
        if offset.is_none() {
            faults.record(&format!(
                "{length} bytes at sector {} of a disk with {} sectors",
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

    /// `DISCARD` and `WRITE_ZEROES`: a list of ranges.
    fn ranges(&self, memory: &GuestMemory, disk: &mut Disk, faults: &GuestFaults) -> Status {
        let buffers = self.data_in();
        let length = queue::total_length(&buffers);
        if disk.is_read_only() {
            faults.record(&"a discard on a read-only disk");
            return Status::IoError;
        }
        if length == 0 || !length.is_multiple_of(RANGE) || length / RANGE > u64::from(MAX_RANGES) {
            faults.record(&format!("a list of ranges with {length} bytes"));
            return Status::IoError;
        }
        let mut bytes = vec![0; length as usize];
        queue::read_from(memory, &buffers, &mut bytes);
        for range in bytes.chunks_exact(RANGE as usize) {
            let status = self.range(range, disk, faults);
            if status != Status::Ok {
                return status;
            }
        }
        Status::Ok
    }

    fn range(&self, bytes: &[u8], disk: &mut Disk, faults: &GuestFaults) -> Status {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sector, count, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        let end = sector.checked_add(u64::from(count));
        if count > MAX_RANGE_SECTORS || end.is_none_or(|end| end > disk.sectors()) {
            faults.record(&format!("a range of {count} sectors at sector {sector}"));
            return Status::IoError;
        }
        let (offset, length) = (sector * SECTOR, u64::from(count) * SECTOR);
        match (self.kind, flags) {
            (kind::DISCARD, 0) => Status::of(&disk.discard(offset, length)),
            (kind::WRITE_ZEROES, 0 | RANGE_UNMAP) => {
                Status::of(&disk.write_zeroes(offset, length, flags == RANGE_UNMAP))
            }
            // Flags that the device does not know (section 5.2.6.2).
            _ => Status::Unsupported,
        }
    }
}
