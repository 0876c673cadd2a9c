//! A forwarded TCP connection.

use std::collections::VecDeque;
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

/// Buffer size per direction in bytes: the largest window that needs no scaling. With a scaled window, smoltcp rounds
/// the announced end of the window down, below an end that it announced before. It then cuts the last byte off a
/// segment that used the earlier window, but accepts the segment's FIN.
const BUFFER: usize = u16::MAX as usize;
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
    /// The guest's last bytes, from when the guest has closed its sending side. smoltcp discards the bytes in a socket
    /// at the end of TIME-WAIT, but the client may be slower.
    rest: Option<VecDeque<u8>>,
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
            rest: None,
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
        let has_rest = self.rest.as_ref().is_some_and(|rest| !rest.is_empty());
        !(self.is_read && self.is_written) && (has_rest || socket.state() != tcp::State::Closed)
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
        while self.is_writable && self.rest.is_none() && socket.can_recv() {
            let outcome = socket.recv(|bytes| match self.write(bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            if !matches!(outcome, Ok(Ok(()))) {
                return false;
            }
        }
        if self.rest.is_none() && has_fin(socket) {
            self.rest = Some(take_all(socket));
        }
        self.send_rest().is_ok()
    }

    /// Sends the guest's last bytes, and then shuts the client's socket down.
    fn send_rest(&mut self) -> io::Result<()> {
        let Some(mut rest) = self.rest.take() else { return Ok(()) };
        while self.is_writable && !rest.is_empty() {
            let count = self.write(rest.as_slices().0)?;
            rest.drain(..count);
        }
        if rest.is_empty() && !self.is_written {
            self.is_written = true;
            self.host.shutdown(Shutdown::Write)?;
        }
        self.rest = Some(rest);
        Ok(())
    }

    /// Writes to the client's socket. Returns 0 if it is full.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.host.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            outcome => outcome,
        }
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

/// Returns true if the guest has sent all of its data.
fn has_fin(socket: &tcp::Socket) -> bool {
    use tcp::State::{CloseWait, Closing, LastAck, TimeWait};
    matches!(socket.state(), CloseWait | LastAck | Closing | TimeWait)
}

fn take_all(socket: &mut tcp::Socket) -> VecDeque<u8> {
    let mut bytes = vec![0; socket.recv_queue()];
    let count = socket.recv_slice(&mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes.into()
}

impl AsFd for ForwardedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}
