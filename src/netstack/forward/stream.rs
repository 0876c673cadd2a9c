//! A forwarded TCP connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpEndpoint};
use vmm_sys_util::epoll::EventSet;

use super::super::stack::Stack;
use machine::network::{Forward, NetstackConfig};

/// Buffer size per direction in bytes.
const BUFFER: usize = 64 << 10;
/// The time after which a connection without any segment from the guest is closed, and the keep-alive interval.
const SILENCE: Duration = Duration::from_secs(120);
const ASK: Duration = Duration::from_secs(30);

/// The host's end of a forwarded connection.
#[derive(Debug)]
pub struct ForwardedConnection {
    forward: Forward,
    host: TcpStream,
    /// The client's socket may be readable or writable: no call has returned `WouldBlock` since epoll reported it.
    is_readable: bool,
    is_writable: bool,
    /// The client has closed its sending side.
    is_read: bool,
    /// The guest has closed its sending side, and the client's socket is shut down accordingly.
    is_written: bool,
    /// The client has reset the connection, which ends it even if data for the guest is left.
    is_reset: bool,
}

impl ForwardedConnection {
    pub fn open(
        forward: Forward,
        host: TcpStream,
        port: u16,
        stack: &mut Stack,
        config: &NetstackConfig,
    ) -> io::Result<(SocketHandle, ForwardedConnection)> {
        host.set_nonblocking(true)?;
        host.set_nodelay(true)?;
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(ASK));
        let (interface, sockets) = stack.parts();
        let own = IpEndpoint { addr: IpAddress::Ipv4(config.router), port };
        let guest = IpEndpoint { addr: IpAddress::Ipv4(config.address), port: forward.guest_port };
        socket.connect(interface.context(), guest, own).map_err(|error| io::Error::other(error.to_string()))?;
        let handle = sockets.add(socket);
        let connection = ForwardedConnection {
            forward,
            host,
            is_readable: true,
            is_writable: true,
            is_read: false,
            is_written: false,
            is_reset: false,
        };
        Ok((handle, connection))
    }

    pub fn forward(&self) -> Forward {
        self.forward
    }

    pub fn note(&mut self, events: EventSet) {
        self.is_reset |= events.contains(EventSet::ERROR);
        let ended = EventSet::HANG_UP | EventSet::ERROR | EventSet::READ_HANG_UP;
        self.is_readable |= events.intersects(EventSet::IN | ended);
        self.is_writable |= events.intersects(EventSet::OUT | ended);
    }

    /// Transfers data in both directions. Returns false if the connection has ended.
    pub fn pump(&mut self, socket: &mut tcp::Socket) -> bool {
        if self.is_reset || !self.send_to_guest(socket) || !self.send_to_host(socket) {
            return false;
        }
        !(self.is_read && self.is_written) && socket.state() != tcp::State::Closed
    }

    fn send_to_guest(&mut self, socket: &mut tcp::Socket) -> bool {
        while self.is_readable && !self.is_read && socket.can_send() {
            let host = &mut self.host;
            let outcome = socket.send(|room| match host.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match outcome {
                Ok(Ok(0)) => {
                    self.is_read = true;
                    socket.close();
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }

    fn send_to_host(&mut self, socket: &mut tcp::Socket) -> bool {
        while self.is_writable && socket.can_recv() {
            let host = &mut self.host;
            let outcome = socket.recv(|bytes| match host.write(bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        let is_connected =
            !matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Closed);
        if is_connected && !self.is_written && !socket.may_recv() && !socket.can_recv() {
            self.is_written = true;
            return self.host.shutdown(Shutdown::Write).is_ok();
        }
        true
    }

    /// Ends the connection: in an orderly way if both sides have closed it, otherwise with a reset in both directions.
    pub fn end(self, socket: &mut tcp::Socket) {
        if !(self.is_read && self.is_written) {
            socket.abort();
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // SAFETY: the kernel reads a `linger` of that size at the pointer, which is valid for the call. If it
            // fails, the client sees an orderly end instead of a reset.
            unsafe {
                libc::setsockopt(
                    self.host.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                );
            }
        }
    }
}

impl AsFd for ForwardedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}
