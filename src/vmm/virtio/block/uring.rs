//! Concurrent requests through an io_uring, and the order between requests.
//!
//! The ring executes reads that map directly to files, and the `fsync` of a flush. The thread executes all other
//! requests, including writes. A failed or short read is retried by the thread. The order is:
//!
//! - A flush covers the writes before it, because these are complete when it is submitted.
//! - A request that could free clusters for reuse waits for the reads in flight.
//! - A failed flush fails all flushes in flight, and the next one if there was a write meanwhile: the kernel reports an
//!   error only once, but it may concern that write.

use std::io;

use super::SEGMENTS_MAX;
use super::request::{BlockRequest, Completion, Operation, RequestStatus, offset_on};
use super::ring::Ring;
use super::submitter::{Submitter, SyncSubmitter, Target};
use crate::memory::GuestMemory;
use crate::virtio::queue::{self, Buffer, QueueError, Virtqueue};
use disk::{Disk, FileExtent, SECTOR};

/// Dropping it waits for the requests in flight, because the kernel still uses their buffers.
#[derive(Debug)]
pub(super) struct UringSubmitter<'a> {
    ring: &'a mut Ring,
    memory: GuestMemory,
    /// Requests in flight, indexed by the token of their io_uring operations.
    in_flight: Vec<Option<InFlight>>,
    /// Set if a write was executed while a flush was in flight.
    wrote_during_flush: bool,
    /// An error that the next flush must report.
    deferred_error: Option<i32>,
}

#[derive(Debug)]
struct InFlight {
    completion: Completion,
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

impl Submitter for UringSubmitter<'_> {
    fn submit(&mut self, mut request: BlockRequest, target: &mut Target) -> Result<(), QueueError> {
        let completion = request.completion;
        let is_started = match &mut request.operation {
            Operation::Read { sector, buffers } => self.submit_read(completion, *sector, buffers, target)?,
            Operation::Flush => self.submit_flush(completion, target)?,
            _ => false,
        };
        if is_started {
            return Ok(());
        }
        // The kernel works on earlier requests while this thread executes this one.
        self.ring.submit();
        if !self.is_empty() && could_free_clusters(&request.operation, target.disk) {
            self.drain(target.disk, target.queue)?;
        }
        if request.writes() {
            self.note_write();
        }
        SyncSubmitter.submit(request, target)
    }

    fn complete(&mut self, disk: &Disk, queue: &mut Virtqueue) -> Result<(), QueueError> {
        self.ring.submit();
        while let Some((token, result)) = self.ring.completed() {
            let Some(place) = usize::try_from(token).ok().and_then(|token| self.in_flight.get_mut(token)) else {
                continue;
            };
            let Some(request) = place else { continue };
            request.parts -= 1;
            match (&mut request.work, u32::try_from(result)) {
                (_, Err(_)) => request.error = request.error.or(Some(result.saturating_neg())),
                (Work::Read { done, .. }, Ok(bytes)) => *done += u64::from(bytes),
                (Work::Flush, Ok(_)) => {}
            }
            if request.parts == 0
                && let Some(request) = place.take()
            {
                if request.is_flush() {
                    self.share(request.error);
                }
                let (status, length) = request.result(&self.memory, disk);
                request.completion.finish(&self.memory, queue, status, length)?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, disk: &Disk, queue: &mut Virtqueue) -> Result<(), QueueError> {
        while !self.is_empty() {
            self.ring.wait();
            self.complete(disk, queue)?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.ring.room() == 0
    }
}

impl<'a> UringSubmitter<'a> {
    pub fn new(ring: &'a mut Ring, memory: &GuestMemory) -> UringSubmitter<'a> {
        let (in_flight, wrote_during_flush, deferred_error) = (Vec::new(), false, None);
        UringSubmitter { ring, memory: memory.clone(), in_flight, wrote_during_flush, deferred_error }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.in_flight() == 0
    }

    /// Executes a cached read, or queues a read that maps directly to files. Returns false if it does neither.
    fn submit_read(
        &mut self,
        completion: Completion,
        sector: u64,
        buffers: &mut Vec<Buffer>,
        target: &mut Target,
    ) -> Result<bool, QueueError> {
        // The driver has exceeded the device's limit, and possibly the kernel's limit for one system call.
        if buffers.len() > SEGMENTS_MAX as usize {
            return Ok(false);
        }
        let length = queue::total_length(buffers);
        let Some(offset) = offset_on(target.disk.sectors(), sector, length) else { return Ok(false) };
        let Some(extents) = target.disk.pieces(offset, length) else { return Ok(false) };
        // A lone cached read is cheaper synchronously than through io_uring.
        if let [extent] = &extents[..]
            && self.is_empty()
            && target.queue.available()? == 0
            && extent.read_cached(&queue::volatile_slices(&self.memory, buffers))
        {
            let status = RequestStatus::of(&target.disk.was_read(length));
            completion.finish(&self.memory, target.queue, status, length as u32)?;
            return Ok(true);
        }
        Ok(self.queue_read(completion, buffers, offset, &extents))
    }

    /// Queues a read of `extents`, which hold the data at `offset` of the disk, and takes the buffers. If there is no
    /// room, leaves the buffers and returns false.
    pub(super) fn queue_read(
        &mut self,
        completion: Completion,
        buffers: &mut Vec<Buffer>,
        offset: u64,
        extents: &[FileExtent],
    ) -> bool {
        if extents.len() > self.ring.room() {
            return false;
        }
        let mut vectors = Vec::with_capacity(buffers.len() + extents.len());
        let mut ends = Vec::with_capacity(extents.len());
        let mut length = 0;
        for extent in extents {
            let part = queue::subrange(buffers, length, extent.length);
            vectors.extend(
                queue::volatile_slices(&self.memory, &part)
                    .iter()
                    .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }),
            );
            ends.push(vectors.len());
            length += extent.length;
        }
        let token = self.token();
        let mut start = 0;
        for (extent, end) in extents.iter().zip(ends) {
            // SAFETY: the request in flight owns the vectors, whose heap allocation does not move. This object keeps the
            // memory mapped, and waits for the request when it is dropped. Guest memory is only accessed as volatile.
            unsafe { self.ring.read(extent.fd, &vectors[start..end], extent.offset, token as u64) };
            start = end;
        }
        let work = Work::Read { buffers: std::mem::take(buffers), offset, length, done: 0, _vectors: vectors };
        self.in_flight[token] = Some(InFlight { completion, work, parts: extents.len(), error: None });
        true
    }

    /// Queues a flush, or fails it if an earlier error is due. Returns false if the disk must be flushed synchronously.
    fn submit_flush(&mut self, completion: Completion, target: &mut Target) -> Result<bool, QueueError> {
        if let Some(error) = self.take_deferred_error() {
            let status = RequestStatus::of(&target.disk.was_flushed(Err(error)));
            completion.finish(&self.memory, target.queue, status, 0)?;
            return Ok(true);
        }
        let Some(fd) = target.disk.begin_flush() else { return Ok(false) };
        self.queue_flush(completion, fd);
        Ok(true)
    }

    /// Queues an `fsync` of the file `fd`, whose completion answers a flush request. There must be room.
    pub(super) fn queue_flush(&mut self, completion: Completion, fd: i32) {
        let token = self.token();
        self.ring.sync(fd, token as u64);
        self.in_flight[token] = Some(InFlight { completion, work: Work::Flush, parts: 1, error: None });
    }

    /// Records a write. If a flush that is in flight fails, the next flush must report the error too.
    pub(super) fn note_write(&mut self) {
        self.wrote_during_flush |= self.in_flight.iter().flatten().any(InFlight::is_flush);
    }

    pub(super) fn take_deferred_error(&mut self) -> Option<io::Error> {
        self.deferred_error.take().map(io::Error::from_raw_os_error)
    }

    /// Propagates a flush error to the other flushes in flight, and to the next one if there was a write meanwhile.
    fn share(&mut self, error: Option<i32>) {
        let mut others = self.in_flight.iter_mut().flatten().filter(|request| request.is_flush()).peekable();
        let is_last = others.peek().is_none();
        if let Some(error) = error.filter(|error| !NOT_STARTED.contains(error)) {
            others.for_each(|other| other.error = Some(error));
            if self.wrote_during_flush {
                self.deferred_error = Some(error);
            }
        }
        self.wrote_during_flush &= !is_last;
    }

    /// Returns an unused index of `in_flight`, which never has more entries than the ring.
    fn token(&mut self) -> usize {
        self.in_flight.iter().position(Option::is_none).unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        })
    }
}

impl Drop for UringSubmitter<'_> {
    fn drop(&mut self) {
        while !self.is_empty() {
            self.ring.wait();
            while self.ring.completed().is_some() {}
        }
    }
}

/// Returns true if the request could free clusters that reads in flight use.
fn could_free_clusters(operation: &Operation, disk: &Disk) -> bool {
    match operation {
        Operation::Ranges { .. } => true,
        Operation::Write { sector, buffers } => {
            disk.write_frees(sector.saturating_mul(SECTOR), queue::total_length(buffers))
        }
        _ => false,
    }
}

/// Errors of operations that never started, because the kernel had no worker thread for them.
const NOT_STARTED: [i32; 3] = [libc::ECANCELED, libc::EAGAIN, libc::EINTR];

impl InFlight {
    fn is_flush(&self) -> bool {
        matches!(self.work, Work::Flush)
    }

    /// Returns the status, after a retry if necessary, and the number of bytes written to the request's buffers.
    fn result(&self, memory: &GuestMemory, disk: &Disk) -> (RequestStatus, u32) {
        let (result, length) = match &self.work {
            Work::Read { buffers, offset, length, done, .. } => {
                let result = match self.error {
                    None if done == length => disk.was_read(*length),
                    _ => disk.read(&queue::volatile_slices(memory, buffers), *offset),
                };
                (result, *length as u32)
            }
            Work::Flush => {
                let result = match self.error {
                    Some(error) if NOT_STARTED.contains(&error) => disk.flush(),
                    // The kernel reports a failed write only once: another sync would succeed.
                    error => disk.was_flushed(error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))),
                };
                (result, 0)
            }
        };
        (RequestStatus::of(&result), length)
    }
}
