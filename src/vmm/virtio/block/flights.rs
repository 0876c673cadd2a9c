//! Requests in flight: those that a ring carries out while the device's thread goes on with others.
//!
//! Reads of what is mapped straight to files, and what flushes wait for. They are begun and completed with the disk held,
//! by the thread that holds it, and none is left when it lets go. A read that fails, or gives less than it should, is
//! done once more the way of all other requests, which says what is wrong.

use std::io;

use vm_memory::GuestAddress;

use super::disk::{Disk, Piece};
use super::request::{Status, answer};
use super::ring::Ring;
use crate::vmm::memory::GuestMemory;
use crate::vmm::virtio::queue::{self, Buffer, QueueError, Virtqueue};

/// Those of one ring. Dropped, it waits for them: the kernel has their buffers.
#[derive(Debug)]
pub(super) struct Flights<'a> {
    ring: &'a mut Ring,
    memory: GuestMemory,
    /// By their tokens.
    flights: Vec<Option<Flight>>,
    /// Whether something was written while a flush was in flight.
    wrote_beside: bool,
    /// The error of a flush that may have been a later write's: the kernel tells of a failed write once.
    owed: Option<i32>,
}

/// Who is to be answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipient {
    /// The chain's first descriptor.
    pub head: u16,
    /// Where the status goes.
    pub status: GuestAddress,
}

#[derive(Debug)]
struct Flight {
    recipient: Recipient,
    work: Work,
    /// Parts of it that are not completed.
    parts: usize,
    /// The first error of the host's.
    error: Option<i32>,
}

#[derive(Debug)]
enum Work {
    Read { buffers: Vec<Buffer>, offset: u64, length: u64, done: u64, _vectors: Vec<libc::iovec> },
    Flush,
}

impl<'a> Flights<'a> {
    /// None yet, in `ring`, with buffers in `memory`.
    pub fn new(ring: &'a mut Ring, memory: &GuestMemory) -> Flights<'a> {
        Flights { ring, memory: memory.clone(), flights: Vec::new(), wrote_beside: false, owed: None }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ring.in_flight() == 0
    }

    /// Whether no more fits.
    pub fn is_full(&self) -> bool {
        self.ring.room() == 0
    }

    /// Has the `pieces` of files be read into `buffers`, which are what is at `offset` of the disk. Returns whether there
    /// was room.
    pub fn read(&mut self, recipient: Recipient, buffers: Vec<Buffer>, offset: u64, pieces: &[Piece]) -> bool {
        if pieces.len() > self.ring.room() {
            return false;
        }
        let mut vectors = Vec::with_capacity(buffers.len() + pieces.len());
        let mut ends = Vec::with_capacity(pieces.len());
        let mut length = 0;
        for piece in pieces {
            let part = queue::subrange(&buffers, length, piece.length);
            vectors.extend(
                queue::volatile_slices(&self.memory, &part)
                    .iter()
                    .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }),
            );
            ends.push(vectors.len());
            length += piece.length;
        }
        let token = self.token();
        let mut start = 0;
        for (piece, end) in pieces.iter().zip(ends) {
            // SAFETY: the vectors stay on the heap where they are, and the memory mapped, with this flight and this
            // object, which waits for it. Guest memory is only ever accessed as volatile.
            unsafe { self.ring.read(piece.fd, &vectors[start..end], piece.offset, token as u64) };
            start = end;
        }
        let work = Work::Read { buffers, offset, length, done: 0, _vectors: vectors };
        self.flights[token] = Some(Flight { recipient, work, parts: pieces.len(), error: None });
        true
    }

    /// Takes note of a write that is done now. The next flush is for it, whatever one in flight is told of it.
    pub fn wrote(&mut self) {
        self.wrote_beside |= self.flights.iter().flatten().any(Flight::is_flush);
    }

    /// The error that the next flush has to tell of, if there is one.
    pub fn owed(&mut self) -> Option<io::Error> {
        self.owed.take().map(io::Error::from_raw_os_error)
    }

    /// Has a flush answered when the file `fd` is written out. There must be room.
    pub fn flush(&mut self, recipient: Recipient, fd: i32) {
        let token = self.token();
        self.ring.sync(fd, token as u64);
        self.flights[token] = Some(Flight { recipient, work: Work::Flush, parts: 1, error: None });
    }

    /// Begins what was put in.
    pub fn submit(&mut self) {
        self.ring.submit();
    }

    /// Hands those back that are completed.
    pub fn complete(&mut self, disk: Option<&Disk>, queue: &mut Virtqueue) -> Result<(), QueueError> {
        while let Some((token, result)) = self.ring.completed() {
            let Some(place) = usize::try_from(token).ok().and_then(|token| self.flights.get_mut(token)) else {
                continue;
            };
            let Some(flight) = place else { continue };
            flight.parts -= 1;
            match (&mut flight.work, u32::try_from(result)) {
                (_, Err(_)) => flight.error = flight.error.or(Some(result.saturating_neg())),
                (Work::Read { done, .. }, Ok(bytes)) => *done += u64::from(bytes),
                (Work::Flush, Ok(_)) => {}
            }
            if flight.parts == 0
                && let Some(flight) = place.take()
            {
                if flight.is_flush() {
                    self.share(flight.error);
                }
                let written = flight.end(&self.memory, disk);
                queue.add_used(flight.recipient.head, written)?;
            }
        }
        Ok(())
    }

    /// Waits for all of them, and hands them back.
    pub fn drain(&mut self, disk: Option<&Disk>, queue: &mut Virtqueue) -> Result<(), QueueError> {
        while !self.is_empty() {
            self.ring.wait();
            self.complete(disk, queue)?;
        }
        Ok(())
    }

    /// What a flush was told goes for those beside it, too, and for the next one if it was about what came later.
    fn share(&mut self, error: Option<i32>) {
        let mut others = self.flights.iter_mut().flatten().filter(|flight| flight.is_flush()).peekable();
        let is_last = others.peek().is_none();
        if let Some(error) = error.filter(|error| !NOT_BEGUN.contains(error)) {
            others.for_each(|other| other.error = Some(error));
            if self.wrote_beside {
                self.owed = Some(error);
            }
        }
        self.wrote_beside &= !is_last;
    }

    /// A free one: there are no more than fit into the ring.
    fn token(&mut self) -> usize {
        self.flights.iter().position(Option::is_none).unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        })
    }
}

impl Drop for Flights<'_> {
    fn drop(&mut self) {
        while !self.is_empty() {
            self.ring.wait();
            while self.ring.completed().is_some() {}
        }
    }
}

/// What an operation ends with that was not begun: there was no thread of the kernel's for it.
const NOT_BEGUN: [i32; 3] = [libc::ECANCELED, libc::EAGAIN, libc::EINTR];

impl Flight {
    fn is_flush(&self) -> bool {
        matches!(self.work, Work::Flush)
    }

    /// Answers. Returns how many bytes of the chain were written.
    fn end(&self, memory: &GuestMemory, disk: Option<&Disk>) -> u32 {
        let (result, written) = match (&self.work, disk) {
            (_, None) => (Err(io::ErrorKind::NotFound.into()), 0),
            (Work::Read { buffers, offset, length, done, .. }, Some(disk)) => {
                let result = match self.error {
                    None if done == length => disk.was_read(*length),
                    _ => disk.read(&queue::volatile_slices(memory, buffers), *offset),
                };
                (result, *length as u32)
            }
            (Work::Flush, Some(disk)) => {
                let result = match self.error {
                    Some(error) if NOT_BEGUN.contains(&error) => disk.flush(),
                    // The kernel tells of a failed write once: another sync would succeed.
                    error => disk.was_flushed(error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))),
                };
                (result, 0)
            }
        };
        answer(memory, self.recipient.status, Status::of(&result)) + written
    }
}
