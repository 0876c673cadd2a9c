//! The VMM's end of the broker's channels. VMM threads cannot open sockets, so this code only exchanges messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::ports::{PortState, PortsMessage};
use super::relay::{FROM_VMM, TO_VMM};
use super::{MESSAGE_LIMIT, PORTS_AT_A_TIME, Taken, take, vsock};
use crate::Forward;
use machine::sync::lock;

#[derive(Debug)]
pub struct BrokerClient {
    pub link: LinkSockets,
    pub vsock: VsockConnector,
}

/// The channels for published ports.
#[derive(Debug)]
pub struct LinkSockets {
    pub ports: PortsClient,
    pub datagrams: DatagramChannel,
}

#[derive(Debug)]
pub enum HostPort {
    /// A new TCP listener.
    Passed(TcpListener),
    /// A listener that was passed before, or a relayed UDP port.
    Open,
    Failed(String),
}

#[derive(Debug)]
pub struct PortsClient(Mutex<OwnedFd>);

impl PortsClient {
    pub(super) fn new(channel: OwnedFd) -> PortsClient {
        PortsClient(Mutex::new(channel))
    }

    /// Makes the broker reload its configuration and returns all ports. Needs no timeout: if the broker ends, so does
    /// the VMM.
    pub fn request(&self) -> io::Result<Vec<(Forward, HostPort)>> {
        // Responses arrive in the order of requests, so one request is in flight at a time.
        let channel = lock(&self.0);
        send(&*channel, b"?", SendFlags::NOSIGNAL)?;
        let mut ports = Vec::new();
        loop {
            let (text, passed) = receive(&*channel, MESSAGE_LIMIT)?;
            let message: PortsMessage = serde_json::from_slice(&text)?;
            let mut passed = passed.into_iter().map(TcpListener::from);
            for record in message.ports {
                let port = match record.state {
                    PortState::Passed => passed.next().map_or_else(no_descriptor, HostPort::Passed),
                    PortState::Open => HostPort::Open,
                    PortState::Failed(why) => HostPort::Failed(why),
                };
                ports.push((record.forward, port));
            }
            match message.failed {
                Some(why) => return Err(io::Error::other(why)),
                None if message.is_last => return Ok(ports),
                None => {}
            }
        }
    }
}

fn no_descriptor() -> HostPort {
    HostPort::Failed("the VMM has no file descriptor left for the published port".into())
}

fn receive(channel: impl AsFd, limit: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PORTS_AT_A_TIME))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&channel, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut passed = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    text.truncate(received.bytes);
    Ok((text, passed))
}

#[derive(Debug)]
pub struct DatagramChannel(OwnedFd);

impl DatagramChannel {
    pub(super) fn new(channel: OwnedFd) -> io::Result<DatagramChannel> {
        fcntl_setfl(&channel, fcntl_getfl(&channel)? | OFlags::NONBLOCK)?;
        Ok(DatagramChannel(channel))
    }

    /// Returns the next datagram for the guest, if any: the peer's number, the guest's port and the payload.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<(u16, u16, &'a [u8])> {
        let Taken::Message(length) = take(&self.0, buffer) else { return None };
        let (head, payload) = buffer[..length].split_first_chunk::<TO_VMM>()?;
        let [a, b, c, d] = *head;
        Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]), payload))
    }

    /// Sends a reply to a peer. It is lost if the channel is full.
    pub fn send(&self, peer: u16, payload: &[u8]) {
        let number: [u8; FROM_VMM] = peer.to_le_bytes();
        let _ = rustix::io::writev(&self.0, &[IoSlice::new(&number), IoSlice::new(payload)]);
    }
}

impl AsFd for DatagramChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The channel for connections from the guest to Unix sockets on the host.
#[derive(Debug)]
pub struct VsockConnector(OwnedFd);

impl VsockConnector {
    pub(super) fn new(channel: OwnedFd) -> VsockConnector {
        VsockConnector(channel)
    }

    /// Duplicates the descriptor, because the guest may reset and set up the device again.
    pub fn try_clone(&self) -> io::Result<VsockConnector> {
        self.0.try_clone().map(VsockConnector)
    }

    /// Connects to the socket for `port`. The guest chooses the port, so the broker is only asked if the socket exists.
    pub fn connect(&self, socket: &Path, port: u32) -> io::Result<UnixStream> {
        vsock::path(socket, port).symlink_metadata()?;
        send(&self.0, &port.to_le_bytes(), SendFlags::NOSIGNAL)?;
        let (code, passed) = receive(&self.0, 1)?;
        match passed.into_iter().next() {
            Some(stream) if code == [vsock::CONNECTED] => Ok(stream.into()),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}
