//! Backends of a network device: the destination and source of its frames.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};

use super::frame::{Received, Sent};
use super::header::{self, Header};
use super::stream::Stream;
use super::tap::Tap;
use crate::virtio::iovec::IoVecs;
use netstack::HEAD_LENGTH;

#[derive(Debug)]
pub enum Backend {
    /// A tap device of the host.
    Tap(Tap),
    /// The socket of a user-mode network.
    Stream(Stream),
    /// Frames are discarded and none arrive.
    Disconnected,
}

impl Backend {
    /// Wraps a tap device with `IFF_VNET_HDR`, or a stream socket.
    pub fn of(fd: OwnedFd) -> io::Result<Backend> {
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Socket => Ok(Backend::Stream(Stream::new(fd)?)),
            FileType::CharacterDevice => Ok(Backend::Tap(Tap::new(fd)?)),
            other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{other:?} is not a network backend"))),
        }
    }

    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Backend::Tap(tap) => Some(tap.as_raw_fd()),
            Backend::Stream(stream) => Some(stream.as_raw_fd()),
            Backend::Disconnected => None,
        }
    }

    pub fn set_offloads(&self, checksum: bool, segmentation: bool, ecn: bool) -> io::Result<()> {
        match self {
            Backend::Tap(tap) => tap.set_offloads(checksum, segmentation, ecn),
            Backend::Stream(_) | Backend::Disconnected => Ok(()),
        }
    }

    pub fn send(&mut self, header: &Header, frame: &IoVecs) -> Sent {
        match self {
            Backend::Tap(tap) => tap.send(header, frame),
            Backend::Stream(stream) => stream.send(frame),
            Backend::Disconnected => Sent::Done,
        }
    }

    /// Continues sending buffered data. Returns true if there is room for another frame.
    pub fn flush(&mut self) -> bool {
        match self {
            Backend::Stream(stream) => stream.flush(),
            Backend::Tap(_) | Backend::Disconnected => true,
        }
    }

    /// Receives into `target`, which must have room for the longest frame, if the frame's head `may_pass`.
    pub fn receive(&mut self, header: &mut Header, target: &IoVecs, may_pass: impl FnOnce(&[u8]) -> bool) -> Received {
        match self {
            // The kernel only delivers whole frames.
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
            Backend::Disconnected => Received::Nothing,
        }
    }
}
