//! Datagrams that are passed on: each client of the host's gets a port of the router's, so that the guest's answers find it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::super::packet::Datagram;
use super::FIRST_PORT;

/// How long a client may be silent, and how many there are.
const IDLE: Duration = Duration::from_secs(60);
const LIMIT: usize = 256;
/// Datagrams that are taken at a time, and bytes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 256 << 10;

/// The clients of one forward.
#[derive(Debug, Default)]
pub struct Sessions {
    by_port: HashMap<u16, Session>,
    next: u16,
    room: Vec<u8>,
}

#[derive(Debug)]
struct Session {
    client: SocketAddr,
    seen: Instant,
}

impl Sessions {
    /// Takes what clients sent; it goes to `packets`, as IP packets from `router` to the `guest`.
    pub fn receive(
        &mut self,
        socket: &UdpSocket,
        router: Ipv4Addr,
        guest: (Ipv4Addr, u16),
        packets: &mut Vec<Vec<u8>>,
        now: Instant,
    ) {
        self.room.resize(65536, 0);
        let mut taken = 0;
        for _ in 0..BATCH {
            if taken >= BATCH_BYTES {
                break;
            }
            let Ok((length, client)) = socket.recv_from(&mut self.room) else { break };
            taken += length;
            let Some(port) = self.port_of(client, now) else { continue };
            let datagram = Datagram { source: (router, port), destination: guest, payload: &self.room[..length] };
            packets.extend(datagram.packet());
        }
        // Not needed until something comes.
        self.room = Vec::new();
    }

    fn port_of(&mut self, client: SocketAddr, now: Instant) -> Option<u16> {
        if let Some((port, session)) = self.by_port.iter_mut().find(|(_, session)| session.client == client) {
            session.seen = now;
            return Some(*port);
        }
        if self.by_port.len() >= LIMIT {
            self.by_port.retain(|_, session| now.saturating_duration_since(session.seen) < IDLE);
        }
        if self.by_port.len() >= LIMIT {
            return None;
        }
        let port = loop {
            let port = FIRST_PORT + self.next % (u16::MAX - FIRST_PORT);
            self.next = self.next.wrapping_add(1);
            if !self.by_port.contains_key(&port) {
                break port;
            }
        };
        self.by_port.insert(port, Session { client, seen: now });
        Some(port)
    }

    /// Passes on what the guest sent to a port of the router's. Returns whether that is a client's.
    pub fn answer(&mut self, socket: &UdpSocket, datagram: &Datagram) -> bool {
        let Some(session) = self.by_port.get(&datagram.destination.1) else { return false };
        // A datagram may be lost.
        let _ = socket.send_to(datagram.payload, session.client);
        true
    }
}
