//! Exchange of frames over any connected stream socket (vsock, or Unix in tests).
//!
//! Methods block unless their docs say otherwise. Methods that do not block use `MSG_DONTWAIT` and leave the socket in
//! blocking mode. Memory stays below two frames per direction if the caller flushes after it queues.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::frame::{self, LENGTH_BYTES, MAX_FRAME, ProtocolError};
use super::{Hello, VERSION};

/// Minimum capacity for reading the start of a frame. Most requests fit.
const FIRST_READ: usize = 4096;

#[derive(Debug)]
pub struct AgentConnection {
    pub writer: FrameWriter,
    pub reader: FrameReader,
}

impl AgentConnection {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let socket = Arc::new(socket);
        Self {
            writer: FrameWriter { socket: Arc::clone(&socket), pending: Vec::new(), sent: 0 },
            reader: FrameReader { socket, bytes: Vec::new(), start: 0 },
        }
    }

    /// Sends this end's [`Hello`] and waits for the other's.
    pub fn greet(&mut self) -> Result<(), ProtocolError> {
        self.writer.send(&Hello { version: VERSION })?;
        self.await_hello()
    }

    /// Sends this end's [`Hello`] and `request` together, then waits for the other end's [`Hello`]. The other end reads
    /// `request` after it has sent its [`Hello`]. Fails with [`ProtocolError::VersionMismatch`], or if the stream
    /// ended.
    pub fn begin<M: Serialize>(&mut self, request: &M) -> Result<(), ProtocolError> {
        self.writer.queue(&Hello { version: VERSION })?;
        self.writer.send(request)?;
        self.await_hello()
    }

    fn await_hello(&mut self) -> Result<(), ProtocolError> {
        match self.reader.receive::<Hello>()? {
            Hello { version: VERSION } => Ok(()),
            Hello { version } => Err(ProtocolError::VersionMismatch { ours: VERSION, theirs: version }),
        }
    }
}

#[derive(Debug)]
pub struct FrameWriter {
    socket: Arc<OwnedFd>,
    pending: Vec<u8>,
    sent: usize,
}

impl FrameWriter {
    /// Appends a frame to the pending bytes. Fails only with [`ProtocolError::RequestTooLong`].
    pub fn queue<M: Serialize>(&mut self, message: &M) -> Result<(), ProtocolError> {
        frame::encode(message, &mut self.pending)
    }

    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len() - self.sent
    }

    /// Sends all pending bytes. Blocks until the other end has read enough of them.
    pub fn flush(&mut self) -> Result<(), ProtocolError> {
        while self.pending() > 0 {
            self.push(SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Sends pending bytes without blocking. Some may remain pending.
    pub fn flush_now(&mut self) -> Result<(), ProtocolError> {
        while self.pending() > 0 {
            match self.push(SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(ProtocolError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    pub fn send<M: Serialize>(&mut self, message: &M) -> Result<(), ProtocolError> {
        self.queue(message)?;
        self.flush()
    }

    fn push(&mut self, flags: SendFlags) -> Result<(), ProtocolError> {
        match send(&self.socket, &self.pending[self.sent..], flags) {
            Ok(count) => self.sent += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if self.pending() == 0 {
            self.pending.clear();
            self.sent = 0;
        }
        Ok(())
    }
}

impl AsFd for FrameWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    Bytes,
    /// Nothing has arrived yet.
    Empty,
    End,
}

#[derive(Debug)]
pub struct FrameReader {
    socket: Arc<OwnedFd>,
    bytes: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// Waits for the next frame. Fails with [`ProtocolError::Closed`] if the stream ended before the frame, or with
    /// [`ProtocolError::Truncated`] if it ended within the frame.
    pub fn receive<'a, M: Deserialize<'a>>(&'a mut self) -> Result<M, ProtocolError> {
        let frame = loop {
            if let Some(range) = self.take_frame()? {
                break range;
            }
            if self.fill(RecvFlags::empty())? == Fill::End {
                return Err(if self.bytes.len() > self.start {
                    ProtocolError::Truncated
                } else {
                    ProtocolError::Closed
                });
            }
        };
        frame::decode(&self.bytes[frame])
    }

    /// Returns the next complete frame. Fails with [`ProtocolError::TooLong`] or [`ProtocolError::Malformed`].
    pub fn next_buffered<'a, M: Deserialize<'a>>(&'a mut self) -> Result<Option<M>, ProtocolError> {
        match self.take_frame()? {
            Some(frame) => frame::decode(&self.bytes[frame]).map(Some),
            None => Ok(None),
        }
    }

    /// Reads once, without blocking.
    pub fn fill_now(&mut self) -> Result<Fill, ProtocolError> {
        self.fill(RecvFlags::DONTWAIT)
    }

    /// Returns the range of the next complete frame in the buffer.
    fn take_frame(&mut self) -> Result<Option<std::ops::Range<usize>>, ProtocolError> {
        let Ok(frame) = frame::locate(&self.bytes[self.start..])? else {
            return Ok(None);
        };
        let frame = self.start + frame.start..self.start + frame.end;
        self.start = frame.end;
        Ok(Some(frame))
    }

    fn fill(&mut self, flags: RecvFlags) -> Result<Fill, ProtocolError> {
        self.make_room()?;
        loop {
            return match recv(&self.socket, spare_capacity(&mut self.bytes), flags) {
                Ok((_, 0)) => Ok(Fill::End),
                Ok(_) => Ok(Fill::Bytes),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => Ok(Fill::Empty),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Reserves capacity for the rest of a partial frame, or for a first read.
    fn make_room(&mut self) -> Result<(), ProtocolError> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let wanted = match frame::locate(&self.bytes)? {
            Ok(frame) => frame.end + LENGTH_BYTES,
            Err(needed) => needed.max(FIRST_READ),
        };
        debug_assert!(wanted <= 2 * (MAX_FRAME + LENGTH_BYTES), "a frame's length was checked");
        self.bytes.reserve_exact(wanted.saturating_sub(self.bytes.len()).max(1));
        Ok(())
    }
}

impl AsFd for FrameReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Bytes, ToGuest};

    fn pair() -> (UnixStream, AgentConnection) {
        let (far, near) = UnixStream::pair().expect("a socket pair");
        (far, AgentConnection::new(near.into()))
    }

    #[test]
    fn version_mismatch_is_reported() {
        let (far, mut near) = pair();
        let mut far = AgentConnection::new(far.into());
        far.writer.send(&Hello { version: 99 }).expect("sent");
        let error = near.greet().expect_err("another version");
        assert!(matches!(error, ProtocolError::VersionMismatch { ours: VERSION, theirs: 99 }));
    }

    #[test]
    fn stream_ending_within_frame_is_truncated() {
        let (mut far, mut near) = pair();
        far.write_all(&[9, 0, 0, 0, 1]).expect("written");
        drop(far);
        assert!(matches!(near.reader.receive::<ToGuest<'_>>(), Err(ProtocolError::Truncated)));
    }

    #[test]
    fn frames_in_one_read_are_separated() {
        let (far, mut near) = pair();
        let mut far = AgentConnection::new(far.into());
        far.writer.queue(&ToGuest::Stdin(Bytes(b"abc"))).expect("queued");
        far.writer.queue(&ToGuest::StdinEnd).expect("queued");
        far.writer.flush().expect("sent");
        assert_eq!(near.reader.receive::<ToGuest<'_>>().expect("first"), ToGuest::Stdin(Bytes(b"abc")));
        assert_eq!(near.reader.receive::<ToGuest<'_>>().expect("second"), ToGuest::StdinEnd);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_keep_buffer_within_two_frames(
            bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let (mut far, mut near) = pair();
            far.write_all(&bytes).expect("written");
            drop(far);
            while near.reader.receive::<ToGuest<'_>>().is_ok() {}
            prop_assert!(near.reader.bytes.capacity() <= 2 * (MAX_FRAME + LENGTH_BYTES));
        }
    }
}
