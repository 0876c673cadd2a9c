//! The broker: the part of the supervisor that opens host sockets for its VMM.
//!
//! A VMM has an empty network namespace, and none of its threads may call socket, bind, listen or connect
//! (`vmm/sandbox/calls.rs`). Three pairs of SOCK_SEQPACKET sockets connect it to the broker:
//!
//! - *Ports*: the broker opens and closes ports according to the netstack's configuration, and passes TCP listeners as
//!   descriptors. accept(2) does not depend on the caller's network namespace.
//! - *Datagrams*: UDP sockets stay in the broker, because their owner can send to any address. The broker relays
//!   datagrams, and sends only to peers that have sent something to the same port ([`relay`]).
//! - *vsock*: the guest's connections to `<vsock socket>_<port>`, which the broker opens and passes ([`vsock`]).
//!
//! The VMM is not trusted. It only decides when the configuration is read, which known peer gets a datagram, and which
//! vsock port is connected to. The broker never waits for the VMM: it drops a message that the VMM does not receive.

mod client;
mod ports;
mod relay;
#[cfg(test)]
mod tests;
mod vsock;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use client::{BrokerClient, DatagramChannel, HostPort, LinkSockets, PortsClient, VsockConnector};
use ports::Ports;
use relay::Relay;

/// Maximum number of ports per message: below the kernel's descriptor limit (`SCM_MAX_FD`), and the text fits into
/// [`MESSAGE_LIMIT`].
const PORTS_AT_A_TIME: usize = 50;
const MESSAGE_LIMIT: usize = 64 << 10;

#[derive(Debug)]
pub struct Broker {
    epoll: Epoll,
    ports: Ports,
    ports_channel: OwnedFd,
    relay: Relay,
    vsock: Option<PathBuf>,
    vsock_channel: OwnedFd,
    /// The number of channels whose other end is closed, not counting the relay's.
    closed: usize,
}

/// Creates a broker for the netstack's configuration in `link` and the Unix sockets `<vsock>_<port>`.
pub fn pair(link: Option<PathBuf>, vsock: Option<PathBuf>) -> io::Result<(Broker, BrokerClient)> {
    let (ports_channel, ports) = channel()?;
    let (datagrams_channel, datagrams) = channel()?;
    let (vsock_channel, connector) = channel()?;
    let epoll = Epoll::new()?;
    let relay = Relay::new(datagrams_channel)?;
    for fd in [ports_channel.as_raw_fd(), vsock_channel.as_raw_fd(), relay.events().as_raw_fd()] {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
    }
    let broker = Broker { epoll, ports: Ports::new(link), ports_channel, relay, vsock, vsock_channel, closed: 0 };
    let client = BrokerClient {
        link: LinkSockets { ports: PortsClient::new(ports), datagrams: DatagramChannel::new(datagrams)? },
        vsock: VsockConnector::new(connector),
    };
    Ok((broker, client))
}

fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

impl Broker {
    /// Returns a descriptor that becomes readable when there is work to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }

    /// Handles a bounded amount of work without waiting.
    pub fn serve(&mut self) {
        let mut events = [EpollEvent::default(); 4];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            let fd = event.fd();
            if fd == self.ports_channel.as_raw_fd() {
                self.serve_ports();
            } else if fd == self.vsock_channel.as_raw_fd() {
                self.serve_vsock();
            } else {
                self.relay.serve(Instant::now());
            }
        }
    }

    fn serve_ports(&mut self) {
        match take(&self.ports_channel, &mut [0; 1]) {
            Taken::Message(_) => self.ports.answer(&self.ports_channel, &mut self.relay),
            Taken::Nothing => {}
            Taken::End => self.forget(self.ports_channel.as_raw_fd()),
        }
    }

    fn serve_vsock(&mut self) {
        let mut port = [0; 4];
        match take(&self.vsock_channel, &mut port) {
            Taken::Message(length) => {
                let path = self.vsock.as_ref().filter(|_| length == port.len());
                vsock::answer(&self.vsock_channel, path.map(|path| vsock::path(path, u32::from_le_bytes(port))));
            }
            Taken::Nothing => {}
            Taken::End => self.forget(self.vsock_channel.as_raw_fd()),
        }
    }

    /// Stops watching a channel whose other end is closed, which epoll would report forever.
    fn forget(&mut self, fd: i32) {
        self.closed += 1;
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}

/// Runs a broker in a separate thread, which ends when the client is dropped.
#[cfg(any(test, feature = "fuzzing"))]
pub fn in_thread(link: Option<PathBuf>, vsock: Option<PathBuf>) -> BrokerClient {
    use rustix::event::{PollFd, PollFlags, poll};
    let (mut broker, client) = pair(link, vsock).expect("there are descriptors left");
    std::thread::spawn(move || {
        while broker.closed < 2 || !broker.relay.is_closed() {
            let _ = poll(&mut [PollFd::new(&broker.events(), PollFlags::IN)], None);
            broker.serve();
        }
    });
    client
}

enum Taken {
    Message(usize),
    Nothing,
    /// The other end is closed.
    End,
}

fn take(channel: impl AsFd, buffer: &mut [u8]) -> Taken {
    match recv(channel, buffer, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Taken::End,
        Ok((length, _)) => Taken::Message(length),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Taken::Nothing,
        Err(_) => Taken::End,
    }
}
