//! Relays datagrams between the host's UDP ports and the VMM.
//!
//! The VMM identifies a peer by a number, and the guest sees the peer at that port of the router. The VMM can only
//! reply to known peers, from the port that they sent to.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Taken, take};
use crate::{FIRST_PORT, Forward};

/// The idle time after which a peer can be replaced by a new one.
const IDLE: Duration = Duration::from_secs(60);
/// The maximum number of peers of one port.
const LIMIT: usize = 256;
/// Maximum number of datagrams in a batch, and of bytes in a batch to the VMM.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
const MAX_DATAGRAM: usize = 65535;

/// Header sizes. A header to the VMM has the peer's number and the guest's port, one from the VMM only the number.
pub(super) const TO_VMM: usize = 4;
pub(super) const FROM_VMM: usize = 2;

#[derive(Debug)]
pub(super) struct Relay {
    /// Watches the channel and `clients`.
    epoll: Epoll,
    /// Watches the sockets.
    clients: Epoll,
    channel: OwnedFd,
    sockets: HashMap<Forward, UdpSocket>,
    peers: HashMap<u16, Peer>,
    next: u16,
    /// The channel to the VMM is full. Datagrams from peers wait.
    is_full: bool,
    is_closed: bool,
}

#[derive(Debug)]
struct Peer {
    forward: Forward,
    address: SocketAddr,
    seen: Instant,
}

impl Relay {
    pub fn new(channel: OwnedFd) -> io::Result<Relay> {
        let (epoll, clients) = (Epoll::new()?, Epoll::new()?);
        for fd in [channel.as_raw_fd(), clients.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        }
        let (sockets, peers) = (HashMap::new(), HashMap::new());
        Ok(Relay { epoll, clients, channel, sockets, peers, next: 0, is_full: false, is_closed: false })
    }

    /// Returns a descriptor that becomes readable when there is work to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub fn has(&self, forward: &Forward) -> bool {
        self.sockets.contains_key(forward)
    }

    pub fn add(&mut self, forward: Forward, socket: UdpSocket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let fd = socket.as_raw_fd();
        self.clients.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        self.sockets.insert(forward, socket);
        Ok(())
    }

    /// Closes the sockets of ports that are not in `wanted`, and removes the peers of these ports.
    pub fn retain(&mut self, wanted: &[Forward]) {
        self.sockets.retain(|forward, _| wanted.contains(forward));
        let sockets = &self.sockets;
        self.peers.retain(|_, peer| sockets.contains_key(&peer.forward));
    }

    /// Relays datagrams, up to one batch in each direction.
    pub fn serve(&mut self, now: Instant) {
        let mut events = [EpollEvent::default(); 2];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            if event.fd() != self.channel.as_raw_fd() {
                self.receive_from_peers(now);
                continue;
            }
            if event.event_set().contains(EventSet::OUT) {
                self.wait_for_vmm(false);
            }
            if event.event_set().intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
                self.send_to_peers(now);
            }
        }
    }

    fn receive_from_peers(&mut self, now: Instant) {
        let mut message = vec![0; TO_VMM + MAX_DATAGRAM];
        let (mut count, mut bytes) = (0, 0);
        let forwards: Vec<Forward> = self.sockets.keys().copied().collect();
        for forward in forwards {
            while count < BATCH && bytes < BATCH_BYTES && !self.is_full {
                let Some(socket) = self.sockets.get(&forward) else { break };
                let Ok((length, address)) = socket.recv_from(&mut message[TO_VMM..]) else { break };
                (count, bytes) = (count + 1, bytes + length);
                if let Some(number) = self.number_of(forward, address, now) {
                    message[..2].copy_from_slice(&number.to_le_bytes());
                    message[2..TO_VMM].copy_from_slice(&forward.guest_port.to_le_bytes());
                    self.send_to_vmm(&message[..TO_VMM + length]);
                }
            }
        }
    }

    /// Sends a message, or drops it if the channel is full.
    fn send_to_vmm(&mut self, message: &[u8]) {
        if send(&self.channel, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Err(Errno::AGAIN) {
            self.wait_for_vmm(true);
        }
    }

    /// Stops reading from the sockets if the VMM's channel is full. Otherwise, starts again.
    fn wait_for_vmm(&mut self, is_full: bool) {
        self.is_full = is_full;
        let (channel, clients) = match is_full {
            true => (EventSet::IN | EventSet::OUT, EventSet::empty()),
            false => (EventSet::IN, EventSet::IN),
        };
        for (fd, interest) in [(self.channel.as_raw_fd(), channel), (self.clients.as_raw_fd(), clients)] {
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(interest, fd as u64)) {
                log::warn!("polling the UDP sockets of published ports failed: {error}");
            }
        }
    }

    /// Returns the sender's number. A new peer gets a new number, or none if too many peers are active.
    fn number_of(&mut self, forward: Forward, address: SocketAddr, now: Instant) -> Option<u16> {
        let is_it = |peer: &Peer| peer.forward == forward && peer.address == address;
        if let Some((number, peer)) = self.peers.iter_mut().find(|(_, peer)| is_it(peer)) {
            peer.seen = now;
            return Some(*number);
        }
        if self.peers_of(forward) >= LIMIT {
            self.peers.retain(|_, peer| peer.forward != forward || now.saturating_duration_since(peer.seen) < IDLE);
        }
        if self.peers_of(forward) >= LIMIT {
            return None;
        }
        let numbers = u16::MAX - FIRST_PORT;
        let number = (0..numbers).map(|step| FIRST_PORT + self.next.wrapping_add(step) % numbers);
        let number = number.into_iter().find(|number| !self.peers.contains_key(number))?;
        self.next = number - FIRST_PORT + 1;
        self.peers.insert(number, Peer { forward, address, seen: now });
        Some(number)
    }

    fn peers_of(&self, forward: Forward) -> usize {
        self.peers.values().filter(|peer| peer.forward == forward).count()
    }

    fn send_to_peers(&mut self, now: Instant) {
        let mut message = vec![0; FROM_VMM + MAX_DATAGRAM];
        for _ in 0..BATCH {
            let length = match take(&self.channel, &mut message) {
                Taken::Message(length) => length,
                Taken::Nothing => return,
                Taken::End => {
                    self.is_closed = true;
                    // epoll would report the closed end forever.
                    let fd = self.channel.as_raw_fd();
                    let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
                    return;
                }
            };
            let Some((number, payload)) = message[..length].split_first_chunk::<FROM_VMM>() else { continue };
            let Some(peer) = self.peers.get_mut(&u16::from_le_bytes(*number)) else { continue };
            peer.seen = now;
            if let Some(socket) = self.sockets.get(&peer.forward) {
                // Errors are ignored, because datagrams may be lost.
                let _ = socket.send_to(payload, peer.address);
            }
        }
    }
}
