//! The socket protocol of a user-mode network (passt, QEMU): a 4-byte length in network order precedes each frame.
//! If the socket takes only part of a frame, the rest is sent before the next frame.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::frame::{MAX_FRAME, Received, Sent};
use crate::virtio::iovec::IoVecs;
use netstack::HEAD_LENGTH;

const PREFIX: usize = 4;
/// Longest frame that passt accepts (`ETH_MAX_MTU`). It hangs up on a longer one.
const LIMIT: usize = 65535;
/// Size of the receive buffer, which holds two of the longest frames.
const ROOM: usize = 2 * (PREFIX + MAX_FRAME);

#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    /// The rest of a frame that the socket has not taken yet.
    unsent: Vec<u8>,
    /// Bytes between `start` and `end` are unprocessed. Allocated on first use.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    is_closed: bool,
}

impl Stream {
    pub fn new(fd: OwnedFd) -> io::Result<Stream> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Stream { fd, unsent: Vec::new(), buffer: Vec::new(), start: 0, end: 0, is_closed: false })
    }

    pub fn send(&mut self, frame: &IoVecs) -> Sent {
        if frame.length() > LIMIT {
            return Sent::Refused;
        }
        if !self.flush() {
            return Sent::Full;
        }
        let prefix = (frame.length() as u32).to_be_bytes();
        let mut all = IoVecs::default();
        all.push_source(&prefix);
        let mut pieces = all.as_slice().to_vec();
        pieces.extend_from_slice(frame.as_slice());
        // Not sendmsg(2), which is denied to all threads: a seccomp filter cannot inspect the address in its argument.
        // SAFETY: the pieces are valid for the call, as `IoVecs` promises, and are only read.
        let count = unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        match usize::try_from(count) {
            Ok(count) if count < PREFIX => {
                self.unsent.extend_from_slice(&prefix[count..]);
                self.unsent.extend(frame.copy_from(0));
                Sent::Done
            }
            Ok(count) => {
                self.unsent.extend(frame.copy_from(count - PREFIX));
                Sent::Done
            }
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Sent::Full,
            // The next receive detects a closed socket.
            Err(_) => Sent::Refused,
        }
    }

    /// Sends the rest of a frame, or drops it on an error. Returns true if nothing is left.
    pub fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match send(&self.fd, &self.unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => self.unsent.clear(),
            }
        }
        true
    }

    /// Returns the length of the next frame, if it has arrived completely. An invalid length ends the stream.
    fn frame(&mut self) -> Option<usize> {
        let length = self.announced()?;
        if length > MAX_FRAME {
            log::warn!("disconnecting the user-mode network: it sent a frame with the invalid length {length}");
            self.is_closed = true;
            return None;
        }
        (self.end - self.start - PREFIX >= length).then_some(length)
    }

    fn announced(&self) -> Option<usize> {
        let prefix = self.buffer[self.start..self.end].first_chunk::<PREFIX>()?;
        Some(u32::from_be_bytes(*prefix) as usize)
    }

    #[cfg(test)]
    pub fn has_frame(&self) -> bool {
        self.announced().is_some_and(|length| self.end - self.start - PREFIX >= length)
    }

    /// Copies the next frame to `target`. `may_pass` decides from the frame's head whether the guest gets it.
    pub fn receive(&mut self, target: &IoVecs, may_pass: impl FnOnce(&[u8]) -> bool) -> Received {
        loop {
            if self.is_closed {
                return Received::Closed;
            }
            if let Some(length) = self.frame() {
                let frame = self.start + PREFIX..self.start + PREFIX + length;
                self.start = frame.end;
                let frame = &self.buffer[frame];
                if !may_pass(&frame[..length.min(HEAD_LENGTH)]) {
                    return Received::Refused { written: 0 };
                }
                copy_to(target, frame);
                return Received::Frame { length };
            }
            if self.is_closed {
                continue;
            }
            self.buffer.resize(ROOM, 0);
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match recv(&self.fd, &mut self.buffer[self.end..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    log::warn!("the user-mode network closed the connection");
                    self.is_closed = true;
                }
                Ok((count, _)) => self.end += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Received::Nothing,
                Err(error) => {
                    log::warn!("reading from the user-mode network failed: {error}");
                    self.is_closed = true;
                }
            }
        }
    }
}

/// Timeout for each wait for the peer while partial frames are finished.
const SETTLE: Duration = Duration::from_secs(1);

impl Stream {
    /// Finishes partial frames in both directions, so that the next user of the socket starts at a frame boundary.
    fn settle(&mut self) -> io::Result<()> {
        let nonblocking = fcntl_getfl(&self.fd)?;
        fcntl_setfl(&self.fd, nonblocking - OFlags::NONBLOCK)?;
        set_socket_timeout(&self.fd, Timeout::Send, Some(SETTLE))?;
        set_socket_timeout(&self.fd, Timeout::Recv, Some(SETTLE))?;
        while !self.unsent.is_empty() {
            let count = send(&self.fd, &self.unsent, SendFlags::NOSIGNAL)?;
            self.unsent.drain(..count);
        }
        while self.start < self.end && !self.is_closed {
            let length = self.announced();
            if length.is_some_and(|length| length > MAX_FRAME) {
                break;
            }
            let (here, needed) = (self.end - self.start, PREFIX + length.unwrap_or(0));
            if length.is_some() && here >= needed {
                self.start += needed;
                continue;
            }
            let mut rest = vec![0; needed - here];
            let (count, _) = recv(&self.fd, &mut rest[..], RecvFlags::empty())?;
            if count == 0 {
                break;
            }
            self.buffer.splice(self.end..self.end, rest[..count].iter().copied());
            self.end += count;
        }
        set_socket_timeout(&self.fd, Timeout::Send, None)?;
        set_socket_timeout(&self.fd, Timeout::Recv, None)?;
        Ok(fcntl_setfl(&self.fd, nonblocking)?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if (!self.unsent.is_empty() || self.start < self.end)
            && let Err(error) = self.settle()
        {
            log::warn!("completing partial frames of the user-mode network failed: {error}");
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn copy_to(target: &IoVecs, mut bytes: &[u8]) {
    for piece in target.as_slice() {
        let count = piece.iov_len.min(bytes.len());
        // SAFETY: the piece is valid for writes of its length, as `IoVecs` promises for targets. It does not overlap
        // `bytes`, which is memory of the VMM.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.iov_base.cast::<u8>(), count) };
        bytes = &bytes[count..];
    }
}
