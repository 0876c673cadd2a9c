//! What is behind a network device: where its frames go, and come from.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};

use super::header::{self, Header};
use super::stream::Stream;
use super::tap::Tap;
use crate::vmm::link::HEAD_LENGTH;
use crate::vmm::virtio::iovec::Pieces;

/// The longest frame: an IP packet of 65535 bytes behind an Ethernet header.
pub const MAX_FRAME: usize = 65535 + 14;

/// A backend.
#[derive(Debug)]
pub enum Backend {
    /// A network interface of the host's kernel.
    Tap(Tap),
    /// The socket of a user-mode network.
    Stream(Stream),
    /// Nobody takes a frame or sends one.
    Nobody,
}

/// What became of a frame that was to be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// It cannot be sent.
    Refused,
    /// There is no room for it now.
    Full,
}

/// What came of waiting for a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// One with so many bytes, and as many before it as its header has.
    Frame {
        /// Without the header.
        length: usize,
    },
    /// One that may not pass, of which so many bytes were written into the target.
    Refused {
        /// Without the header.
        written: usize,
    },
    /// There is none now.
    Nothing,
    /// There never will be one.
    Closed,
}

impl Backend {
    /// What `fd` is: a tap with `IFF_VNET_HDR` and a header of [`header::LENGTH`] bytes, or a stream socket.
    pub fn of(fd: OwnedFd) -> io::Result<Backend> {
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Socket => Ok(Backend::Stream(Stream::new(fd)?)),
            FileType::CharacterDevice => Ok(Backend::Tap(Tap::new(fd)?)),
            other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a network cannot be {other:?}"))),
        }
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Backend::Tap(tap) => Some(tap.as_raw_fd()),
            Backend::Stream(stream) => Some(stream.as_raw_fd()),
            Backend::Nobody => None,
        }
    }

    /// Sends checksums and segments as the driver takes them.
    pub fn set_offloads(&self, checksum: bool, segmentation: bool, ecn: bool) -> io::Result<()> {
        match self {
            Backend::Tap(tap) => tap.set_offloads(checksum, segmentation, ecn),
            Backend::Stream(_) | Backend::Nobody => Ok(()),
        }
    }

    /// Sends a frame.
    pub fn send(&mut self, header: &Header, frame: &Pieces) -> Sent {
        match self {
            Backend::Tap(tap) => tap.send(header, frame),
            Backend::Stream(stream) => stream.send(frame),
            Backend::Nobody => Sent::Done,
        }
    }

    /// Goes on with what could not be sent at once. Returns whether there is room again.
    pub fn flush(&mut self) -> bool {
        match self {
            Backend::Stream(stream) => stream.flush(),
            Backend::Tap(_) | Backend::Nobody => true,
        }
    }

    /// Takes a frame into `target`, which has room for a header and the longest frame, if it `may_pass`: which is asked with
    /// its beginning.
    pub fn receive(&mut self, header: &mut Header, target: &Pieces, may_pass: impl FnOnce(&[u8]) -> bool) -> Received {
        match self {
            // The kernel hands a frame over only as a whole.
            Backend::Tap(tap) => match tap.receive(header, target) {
                Received::Frame { length } if !may_pass(&target.first(length.min(HEAD_LENGTH))) => {
                    Received::Refused { written: length }
                }
                other => other,
            },
            Backend::Stream(stream) => {
                *header = header::PLAIN;
                header[0] = header::DATA_VALID;
                stream.receive(target, may_pass)
            }
            Backend::Nobody => Received::Nothing,
        }
    }
}
