//! Ports of the host that lead to the guest: the monitor listens, and is a client of the guest's own, from its router's address.

mod datagram;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use smoltcp::iface::SocketHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::config::{Forward, LinkConfig, Transport};
use super::packet::Datagram;
use super::stack::Stack;
use datagram::Sessions;
use stream::Connection;

/// The most connections at a time, those among them that only the guest still has to end.
const CONNECTIONS: usize = 256;

/// What lets users other than root listen at the ports below 1024 that servers have.
pub const ALLOW_LOW_PORTS: &str = "sudo sysctl net.ipv4.ip_unprivileged_port_start=22";

/// All forwards of a link.
#[derive(Debug)]
pub struct Forwards {
    epoll: Epoll,
    listeners: HashMap<Forward, Listener>,
    connections: HashMap<RawFd, (SocketHandle, Connection)>,
    problems: Vec<String>,
    next_port: u16,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket, Sessions),
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listener::Tcp(listener) => listener.as_raw_fd(),
            Listener::Udp(socket, _) => socket.as_raw_fd(),
        }
    }
}

/// The monitor's own ports (RFC 6335: dynamic ones).
const FIRST_PORT: u16 = 49152;

impl Forwards {
    /// Without any yet.
    pub fn new() -> io::Result<Forwards> {
        Ok(Forwards {
            epoll: Epoll::new()?,
            listeners: HashMap::new(),
            connections: HashMap::new(),
            problems: Vec::new(),
            next_port: FIRST_PORT,
        })
    }

    /// Becomes readable when there is something to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }

    /// What could not be listened on, in sentences.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Has these forwards and no others. Connections go on whose forward stays.
    pub fn set(&mut self, wanted: &[Forward], stack: &mut Stack) {
        self.problems.clear();
        self.listeners.retain(|forward, _| wanted.contains(forward));
        let ended: Vec<RawFd> = self
            .connections
            .iter()
            .filter(|(_, (_, connection))| !wanted.contains(&connection.forward()))
            .map(|(fd, _)| *fd)
            .collect();
        ended.into_iter().for_each(|fd| self.remove(fd, stack));
        for forward in wanted {
            if self.listeners.contains_key(forward) {
                continue;
            }
            match self.listen(*forward) {
                Ok(listener) => drop(self.listeners.insert(*forward, listener)),
                Err(error) => {
                    let protocol = if forward.transport == Transport::Tcp { "TCP" } else { "UDP" };
                    let (host, guest) = (forward.host, forward.guest_port);
                    let mend = match error.kind() {
                        io::ErrorKind::PermissionDenied => format!("; `{ALLOW_LOW_PORTS}` allows it"),
                        _ => String::new(),
                    };
                    let problem = format!("{protocol} port {host} cannot lead to the guest's {guest}: {error}{mend}");
                    self.problems.push(problem);
                }
            }
        }
    }

    fn listen(&self, forward: Forward) -> io::Result<Listener> {
        let listener = match forward.transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(forward.host)?;
                listener.set_nonblocking(true)?;
                Listener::Tcp(listener)
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(forward.host)?;
                socket.set_nonblocking(true)?;
                Listener::Udp(socket, Sessions::default())
            }
        };
        let fd = listener.as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        Ok(listener)
    }

    /// Does what there is to be done; datagrams for the guest go to `packets`.
    pub fn serve(&mut self, stack: &mut Stack, config: &LinkConfig, packets: &mut Vec<Vec<u8>>, now: Instant) {
        let mut events = [EpollEvent::default(); 64];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut accepting = false;
        for event in &events[..count] {
            match self.connections.get_mut(&event.fd()) {
                Some((_, connection)) => connection.note(event.event_set()),
                None => accepting = true,
            }
        }
        if accepting {
            self.accept(stack, config, packets, now);
        }
        let mut ended = Vec::new();
        for (fd, (handle, connection)) in &mut self.connections {
            if !connection.pump(stack.sockets.get_mut(*handle)) {
                ended.push(*fd);
            }
        }
        ended.into_iter().for_each(|fd| self.remove(fd, stack));
    }

    fn accept(&mut self, stack: &mut Stack, config: &LinkConfig, packets: &mut Vec<Vec<u8>>, now: Instant) {
        let limit = CONNECTIONS.saturating_sub(stack.retired());
        let mut accepted = Vec::new();
        for (forward, listener) in &mut self.listeners {
            match listener {
                Listener::Tcp(listener) => {
                    while self.connections.len() + accepted.len() < limit {
                        match listener.accept() {
                            Ok((host, _)) => accepted.push((*forward, host)),
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            Err(_) => break,
                        }
                    }
                    // One too many is told so, or it would be heard of for ever.
                    if self.connections.len() + accepted.len() >= limit {
                        let _ = listener.accept();
                    }
                }
                Listener::Udp(socket, sessions) => {
                    let guest = (config.address, forward.guest_port);
                    sessions.receive(socket, config.router, guest, packets, now);
                }
            }
        }
        for (forward, host) in accepted {
            let port = self.free_port(stack);
            match Connection::open(forward, host, port, stack, config) {
                Ok((handle, connection)) => {
                    let fd = connection.as_fd().as_raw_fd();
                    let interest = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
                    if self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(interest, fd as u64)).is_ok() {
                        self.connections.insert(fd, (handle, connection));
                    } else {
                        stack.sockets.remove(handle);
                    }
                }
                Err(error) => log::warn!("a connection cannot be passed on to the guest: {error}"),
            }
        }
    }

    /// A port of the monitor's that no connection has.
    fn free_port(&mut self, stack: &Stack) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let has = |handle: &SocketHandle| {
                let socket = stack.sockets.get::<smoltcp::socket::tcp::Socket>(*handle);
                socket.local_endpoint().is_some_and(|endpoint| endpoint.port == port)
            };
            if !self.connections.values().any(|(handle, _)| has(handle)) {
                return port;
            }
        }
    }

    /// A datagram that the guest sent to the router's address. Returns whether it belongs to a forward.
    pub fn answer(&mut self, datagram: &Datagram) -> bool {
        self.listeners.iter_mut().any(|(forward, listener)| match listener {
            Listener::Udp(socket, sessions) if forward.guest_port == datagram.source.1 => {
                sessions.answer(socket, datagram)
            }
            _ => false,
        })
    }

    fn remove(&mut self, fd: RawFd, stack: &mut Stack) {
        if let Some((handle, connection)) = self.connections.remove(&fd) {
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
            connection.end(stack.sockets.get_mut(handle));
            // What it still has to say, it says at the next turn of the stack.
            stack.retire(handle);
        }
    }
}
