//! Port forwarding: forwards connections from published ports on the host to the guest, from its router's address.
//!
//! The supervisor's [broker](crate::broker) passes TCP listeners as descriptors. A channel carries UDP datagrams,
//! each with its peer's number: the router's port at which the guest sees the peer.

mod stream;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use smoltcp::iface::SocketHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::packet::Datagram;
use super::stack::Stack;
use crate::broker::{DatagramChannel, HostPort};
use machine::network::{Forward, NetstackConfig, Transport};
use stream::ForwardedConnection;

/// Maximum number of connections, including those that have ended on the host but are still closing in the guest.
const CONNECTIONS: usize = 256;
/// Maximum number of datagrams to handle at a time. [`BATCH_BYTES`] limits their total size.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub struct Forwards {
    epoll: Epoll,
    listeners: HashMap<Forward, TcpListener>,
    /// The guest's published UDP ports; `udp_peers` are the peers that have sent a datagram.
    udp_ports: HashSet<u16>,
    udp_peers: HashSet<u16>,
    datagrams: Option<DatagramChannel>,
    connections: HashMap<RawFd, (SocketHandle, ForwardedConnection)>,
    problems: Vec<String>,
    next_port: u16,
}

/// The first of the dynamic ports (RFC 6335).
pub const FIRST_PORT: u16 = 49152;

impl Forwards {
    pub fn new(datagrams: Option<DatagramChannel>) -> io::Result<Forwards> {
        let epoll = Epoll::new()?;
        if let Some(channel) = &datagrams {
            let fd = channel.as_fd().as_raw_fd();
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        }
        Ok(Forwards {
            epoll,
            listeners: HashMap::new(),
            udp_ports: HashSet::new(),
            udp_peers: HashSet::new(),
            datagrams,
            connections: HashMap::new(),
            problems: Vec::new(),
            next_port: FIRST_PORT,
        })
    }

    /// Returns a descriptor that becomes readable when there is work to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }

    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Replaces the published ports. Connections to ports that stay published are kept, all others are closed.
    pub fn set(&mut self, ports: Vec<(Forward, HostPort)>, stack: &mut Stack) {
        self.problems.clear();
        let wanted: HashSet<Forward> = ports.iter().map(|(forward, _)| *forward).collect();
        self.listeners.retain(|forward, _| wanted.contains(forward));
        let udp = wanted.iter().filter(|forward| forward.transport == Transport::Udp);
        self.udp_ports = udp.map(|forward| forward.guest_port).collect();
        let ended: Vec<RawFd> = self
            .connections
            .iter()
            .filter(|(_, (_, connection))| !wanted.contains(&connection.forward()))
            .map(|(fd, _)| *fd)
            .collect();
        ended.into_iter().for_each(|fd| self.remove(fd, stack));
        for (forward, port) in ports {
            match port {
                HostPort::Passed(listener) => match self.watch(&listener) {
                    Ok(()) => drop(self.listeners.insert(forward, listener)),
                    Err(error) => self.problems.push(format!("polling {} failed: {error}", forward.host)),
                },
                HostPort::Open => {}
                HostPort::Failed(why) => self.problems.push(why),
            }
        }
    }

    fn watch(&self, listener: &TcpListener) -> io::Result<()> {
        let fd = listener.as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))
    }

    /// Accepts connections, and transfers data of connections. Appends datagrams for the guest to `packets`.
    pub fn serve(&mut self, stack: &mut Stack, config: &NetstackConfig, packets: &mut Vec<Vec<u8>>) {
        let mut events = [EpollEvent::default(); 64];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut accepting = false;
        let datagrams = self.datagrams.as_ref().map(|channel| channel.as_fd().as_raw_fd());
        for event in &events[..count] {
            match self.connections.get_mut(&event.fd()) {
                Some((_, connection)) => connection.note(event.event_set()),
                None if Some(event.fd()) == datagrams => self.take_datagrams(config, event.event_set(), packets),
                None => accepting = true,
            }
        }
        if accepting {
            self.accept(stack, config);
        }
        let mut ended = Vec::new();
        for (fd, (handle, connection)) in &mut self.connections {
            if !connection.pump(stack.sockets.get_mut(*handle)) {
                ended.push(*fd);
            }
        }
        ended.into_iter().for_each(|fd| self.remove(fd, stack));
    }

    fn accept(&mut self, stack: &mut Stack, config: &NetstackConfig) {
        let limit = CONNECTIONS.saturating_sub(stack.retired());
        let mut accepted = Vec::new();
        for (forward, listener) in &mut self.listeners {
            while self.connections.len() + accepted.len() < limit {
                match listener.accept() {
                    Ok((host, _)) => accepted.push((*forward, host)),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            // A connection above the limit is accepted and closed, because epoll would report it until then.
            if self.connections.len() + accepted.len() >= limit {
                let _ = listener.accept();
            }
        }
        for (forward, host) in accepted {
            let port = self.free_port(stack);
            match ForwardedConnection::open(forward, host, port, stack, config) {
                Ok((handle, connection)) => {
                    let fd = connection.as_fd().as_raw_fd();
                    let interest = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
                    if self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(interest, fd as u64)).is_ok() {
                        self.connections.insert(fd, (handle, connection));
                    } else {
                        stack.sockets.remove(handle);
                    }
                }
                Err(error) => log::warn!("cannot forward a connection to the guest: {error}"),
            }
        }
    }

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

    /// Appends datagrams from peers to `packets`, as IP packets from the router to the guest.
    fn take_datagrams(&mut self, config: &NetstackConfig, events: EventSet, packets: &mut Vec<Vec<u8>>) {
        let Some(channel) = &self.datagrams else { return };
        if !events.contains(EventSet::IN) {
            // The other end is closed, which epoll would report forever.
            let fd = channel.as_fd().as_raw_fd();
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
            return;
        }
        let mut room = vec![0; 64 << 10];
        let (mut count, mut bytes) = (0, 0);
        while count < BATCH && bytes < BATCH_BYTES {
            let Some((peer, port, payload)) = channel.receive(&mut room) else { break };
            (count, bytes) = (count + 1, bytes + payload.len());
            self.udp_peers.insert(peer);
            let datagram = Datagram { source: (config.router, peer), destination: (config.address, port), payload };
            packets.extend(datagram.packet());
        }
    }

    /// Sends the guest's datagram to the peer that it replies to. Returns false if there is no such peer.
    pub fn answer(&mut self, datagram: &Datagram) -> bool {
        let (port, peer) = (datagram.source.1, datagram.destination.1);
        match &self.datagrams {
            Some(channel) if self.udp_ports.contains(&port) && self.udp_peers.contains(&peer) => {
                channel.send(peer, datagram.payload);
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, fd: RawFd, stack: &mut Stack) {
        if let Some((handle, connection)) = self.connections.remove(&fd) {
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
            connection.end(stack.sockets.get_mut(handle));
            // Remaining segments are sent when the stack is polled next.
            stack.retire(handle);
        }
    }
}

#[cfg(test)]
mod tests;
