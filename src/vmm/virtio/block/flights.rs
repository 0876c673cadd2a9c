//! Requests in flight: an io_uring executes reads that map directly to files, and the `fsync` of a flush. All are
//! complete when the thread releases the disk. A failed or short read is retried synchronously.

use std::io;

use vm_memory::GuestAddress;

use super::request::{RequestStatus, answer};
use super::ring::Ring;
use crate::memory::GuestMemory;
use crate::virtio::queue::{self, Buffer, QueueError, Virtqueue};
use disk::{Disk, FileExtent};

/// Dropping it waits for the requests in flight, because the kernel still uses their buffers.
#[derive(Debug)]
pub(super) struct Flights<'a> {
    ring: &'a mut Ring,
    memory: GuestMemory,
    /// Requests in flight, indexed by the token of their io_uring operations.
    flights: Vec<Option<Flight>>,
    /// Set if a write was executed while a flush was in flight.
    wrote_during_flush: bool,
    /// An error that the next flush must report too: the kernel reports it only once, but it may concern a write that
    /// was executed during the failed flush.
    deferred_error: Option<i32>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Recipient {
    /// The chain's first descriptor.
    pub head: u16,
    pub status: GuestAddress,
}

#[derive(Debug)]
struct Flight {
    recipient: Recipient,
    work: Work,
    /// Number of io_uring operations that are not complete.
    parts: usize,
    error: Option<i32>,
}

#[derive(Debug)]
enum Work {
    Read { buffers: Vec<Buffer>, offset: u64, length: u64, done: u64, _vectors: Vec<libc::iovec> },
    Flush,
}

impl<'a> Flights<'a> {
    pub fn new(ring: &'a mut Ring, memory: &GuestMemory) -> Flights<'a> {
        Flights { ring, memory: memory.clone(), flights: Vec::new(), wrote_during_flush: false, deferred_error: None }
    }

    pub fn is_empty(&self) -> bool {
        self.ring.in_flight() == 0
    }

    pub fn is_full(&self) -> bool {
        self.ring.room() == 0
    }

    /// Queues a read of the data at `offset` of the disk, which is in `pieces`. Returns false if there is no room.
    pub fn read(&mut self, recipient: Recipient, buffers: Vec<Buffer>, offset: u64, pieces: &[FileExtent]) -> bool {
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
            // SAFETY: the flight owns the vectors, whose heap allocation does not move. This object keeps the memory
            // mapped, and waits for the flight when it is dropped. Guest memory is only ever accessed as volatile.
            unsafe { self.ring.read(piece.fd, &vectors[start..end], piece.offset, token as u64) };
            start = end;
        }
        let work = Work::Read { buffers, offset, length, done: 0, _vectors: vectors };
        self.flights[token] = Some(Flight { recipient, work, parts: pieces.len(), error: None });
        true
    }

    /// Records a write. If a flush that is in flight fails, the next flush must report the error too.
    pub fn wrote(&mut self) {
        self.wrote_during_flush |= self.flights.iter().flatten().any(Flight::is_flush);
    }

    pub fn deferred_error(&mut self) -> Option<io::Error> {
        self.deferred_error.take().map(io::Error::from_raw_os_error)
    }

    /// Queues an `fsync` of the file `fd`, whose completion answers a flush request. There must be room.
    pub fn flush(&mut self, recipient: Recipient, fd: i32) {
        let token = self.token();
        self.ring.sync(fd, token as u64);
        self.flights[token] = Some(Flight { recipient, work: Work::Flush, parts: 1, error: None });
    }

    pub fn submit(&mut self) {
        self.ring.submit();
    }

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

    pub fn drain(&mut self, disk: Option<&Disk>, queue: &mut Virtqueue) -> Result<(), QueueError> {
        while !self.is_empty() {
            self.ring.wait();
            self.complete(disk, queue)?;
        }
        Ok(())
    }

    /// Propagates a flush error to the other flushes in flight, and to the next one if there was a write meanwhile.
    fn share(&mut self, error: Option<i32>) {
        let mut others = self.flights.iter_mut().flatten().filter(|flight| flight.is_flush()).peekable();
        let is_last = others.peek().is_none();
        if let Some(error) = error.filter(|error| !NOT_STARTED.contains(error)) {
            others.for_each(|other| other.error = Some(error));
            if self.wrote_during_flush {
                self.deferred_error = Some(error);
            }
        }
        self.wrote_during_flush &= !is_last;
    }

    /// Returns an unused index of `flights`, which never has more entries than the ring.
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

/// Errors of operations that never started, because the kernel had no worker thread for them.
const NOT_STARTED: [i32; 3] = [libc::ECANCELED, libc::EAGAIN, libc::EINTR];

impl Flight {
    fn is_flush(&self) -> bool {
        matches!(self.work, Work::Flush)
    }

    /// Answers the request, after a retry if necessary. Returns the number of bytes written to the chain.
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
                    Some(error) if NOT_STARTED.contains(&error) => disk.flush(),
                    // The kernel reports a failed write only once: another sync would succeed.
                    error => disk.was_flushed(error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))),
                };
                (result, 0)
            }
        };
        answer(memory, self.recipient.status, RequestStatus::of(&result)) + written
    }
}
