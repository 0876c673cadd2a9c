//! What a guest finds on its link that is not another machine, and the gate to what is: answered by the monitor itself, with
//! no process besides.
//!
//! [`Services`] look at every frame that a guest sends, and every one that is for it. Address resolution and DHCP are
//! answered here; the instance metadata service, and the router's address from which the host's forwarded ports reach the
//! guest, have a TCP of their own. The rest passes, if it comes from the guest's own address (EC2's source and destination
//! check), goes to the gateway's, and the [`filter`] allows it. The link carries IPv4; other protocols, broadcasts and
//! multicasts end here, and so does what is for addresses that mean something else to the host: its loopback, above all,
//! which a backend that is a process of the host's would connect to.

mod arp;
mod config;
mod dhcp;
mod filter;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod http;
mod metadata;
mod packet;
mod stack;

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::vmm::broker::{DatagramChannel, HostPort};
pub use config::{
    Cidr, Filter, FilterProtocol, FilterRule, Forward, GATEWAY_MAC, LinkConfig, METADATA_ADDRESS, MacAddress,
    MetadataConfig, ParseError, Transport,
};
use filter::{Direction, Tracker};
pub(in crate::vmm) use forward::FIRST_PORT;
use forward::Forwards;
use metadata::{Metadata, Server};
use packet::{Datagram, Ethernet, ICMP, Ipv4, TYPE_ARP, TYPE_IPV4, UDP};
use stack::Stack;

/// Bytes of a frame's beginning that are enough to tell where it goes.
pub const HEAD_LENGTH: usize = 256;
/// Frames that wait for the guest, beyond which answers without a connection are dropped.
const WAITING: usize = 256;

/// Where a frame of the guest's goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// On.
    Forward,
    /// Nowhere.
    Drop,
    /// To [`Services::accept`], whole.
    Services,
}

/// The services of one guest's link.
#[derive(Debug)]
pub struct Services {
    mac: MacAddress,
    config: LinkConfig,
    stack: Stack,
    tracker: Tracker,
    metadata: Option<Metadata>,
    server: Server,
    forwards: Forwards,
    /// For the guest: whole frames.
    frames: VecDeque<Vec<u8>>,
    /// Of the last packet that was sent in fragments.
    identification: u16,
}

impl Services {
    /// For a guest with this address. The datagrams of published UDP ports come through `datagrams`; the ports are
    /// [set](Services::set_ports) later.
    pub fn new(mac: MacAddress, config: LinkConfig, datagrams: Option<DatagramChannel>) -> io::Result<Services> {
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty())?;
        Services::with_seed(mac, config, u64::from_le_bytes(seed), datagrams)
    }

    /// The same, with what its TCP's numbers are drawn from.
    fn with_seed(
        mac: MacAddress,
        config: LinkConfig,
        seed: u64,
        datagrams: Option<DatagramChannel>,
    ) -> io::Result<Services> {
        let stack = Stack::new(&config, seed);
        let forwards = Forwards::new(datagrams)?;
        let (tracker, server) = (Tracker::new(config.filter.clone()), Server::default());
        let metadata = config.metadata.clone().map(Metadata::new);
        let frames = VecDeque::new();
        Ok(Services { mac, config, stack, tracker, metadata, server, forwards, frames, identification: 0 })
    }

    /// Has these ports of the host lead to the guest, and no others. Those that are not open are
    /// [problems](Services::problems).
    pub fn set_ports(&mut self, ports: Vec<(Forward, HostPort)>) {
        self.forwards.set(ports, &mut self.stack);
    }

    /// Goes by another configuration, except for its ports. What was begun and stays allowed goes on; the guest's address and
    /// its router stay what they were.
    pub fn reload(&mut self, config: LinkConfig) {
        self.tracker.set_rules(config.filter.clone());
        match (&mut self.metadata, &config.metadata) {
            (Some(metadata), Some(content)) => metadata.set(content.clone()),
            (metadata, content) => *metadata = content.clone().map(Metadata::new),
        }
        if self.metadata.is_none() {
            self.server.close(&mut self.stack);
        }
        let (address, router, prefix_length) = (self.config.address, self.config.router, self.config.prefix_length);
        self.config = LinkConfig { address, router, prefix_length, ..config };
    }

    /// What of its configuration could not be done, in sentences.
    pub fn problems(&self) -> Vec<String> {
        self.forwards.problems().to_vec()
    }

    /// Where a frame of the guest's goes, of which `head` is the beginning: [`HEAD_LENGTH`] bytes, or all of it.
    pub fn from_guest(&mut self, head: &[u8], now: Instant) -> Route {
        let Some(ethernet) = Ethernet::parse(head).filter(|ethernet| ethernet.source == self.mac) else {
            return Route::Drop;
        };
        match ethernet.kind {
            TYPE_ARP => return Route::Services,
            TYPE_IPV4 => {}
            _ => return Route::Drop,
        }
        let Some(packet) = Ipv4::parse(ethernet.payload) else { return Route::Drop };
        if self.is_dhcp(&packet) {
            return Route::Services;
        }
        if packet.source != self.config.address {
            return Route::Drop;
        }
        if self.stack.has(packet.destination) {
            return Route::Services;
        }
        // A bridge would take a frame to a neighbour's own address there, past the router and its rules.
        let is_for_router = ethernet.destination == GATEWAY_MAC && self.is_routed(packet.destination);
        let passes = is_for_router && self.tracker.passes(&packet, Direction::Egress, now);
        if passes { Route::Forward } else { Route::Drop }
    }

    /// A whole frame that is the services'.
    pub fn accept(&mut self, frame: &[u8], now: Instant) {
        let Some(ethernet) = Ethernet::parse(frame) else { return };
        if ethernet.kind == TYPE_ARP {
            let answer = arp::answer(self.mac, self.config.address, ethernet.payload);
            return self.put(answer);
        }
        let Some(packet) = Ipv4::parse(ethernet.payload) else { return };
        if self.is_dhcp(&packet) {
            let message = Datagram::parse(&packet);
            let answer = message.and_then(|message| dhcp::answer(self.mac, &self.config, message.payload));
            return self.put(answer);
        }
        // smoltcp would take each for a whole packet.
        if packet.is_fragment() {
            return;
        }
        if packet.destination == METADATA_ADDRESS {
            let is_service = packet.ports().is_some_and(|(_, to)| Server::is_for(to)) && self.metadata.is_some();
            let begins = packet.begins_connection() == Some(true);
            // One too many is not refused: it comes again.
            if is_service && begins && !self.server.expect(&mut self.stack) {
                return;
            }
        } else if packet.protocol == UDP
            && let Some(datagram) = Datagram::parse(&packet)
            && self.forwards.answer(&datagram)
        {
            return;
        }
        self.stack.arrive(ethernet.payload.to_vec(), now);
    }

    /// Tells the guest that there is no way for a frame of its own, of which `head` is the beginning: programs that wait for
    /// an answer give up at once.
    pub fn refuse(&mut self, head: &[u8]) {
        let packet = Ethernet::parse(head).and_then(|ethernet| Ipv4::parse(ethernet.payload).map(|ip| (ethernet, ip)));
        if let Some((ethernet, _)) = packet.filter(|(_, packet)| packet.protocol != ICMP && !packet.is_later_fragment())
        {
            let answer = packet::unreachable(self.config.router, self.config.address, ethernet.payload);
            self.put(Some(packet::frame(self.mac, GATEWAY_MAC, TYPE_IPV4, &answer)));
        }
    }

    /// Whether a frame may go to the guest, of which `head` is the beginning.
    pub fn to_guest(&mut self, head: &[u8], now: Instant) -> bool {
        let Some(ethernet) = Ethernet::parse(head).filter(|ethernet| ethernet.kind == TYPE_IPV4) else { return false };
        let Some(packet) = Ipv4::parse(ethernet.payload) else { return false };
        let is_its = packet.destination == self.config.address && ethernet.destination == self.mac;
        // Nobody else speaks for those who are on this link.
        is_its && !self.stack.has(packet.source) && self.tracker.passes(&packet, Direction::Ingress, now)
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Instant) {
        self.stack.poll(now);
        let mut packets = Vec::new();
        self.forwards.serve(&mut self.stack, &self.config, &mut packets);
        if let Some(metadata) = &mut self.metadata {
            self.server.serve(&mut self.stack, metadata, now);
        }
        for packet in packets {
            self.identification = self.identification.wrapping_add(1);
            for piece in packet::fragments(packet, self.config.mtu.into(), self.identification) {
                self.put(Some(packet::frame(self.mac, GATEWAY_MAC, TYPE_IPV4, &piece)));
            }
        }
        // What they have written is sent at once.
        self.stack.poll(now);
    }

    /// The next frame for the guest.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        let packet = || Some(packet::frame(self.mac, GATEWAY_MAC, TYPE_IPV4, &self.stack.next_packet()?));
        self.frames.pop_front().or_else(packet)
    }

    /// How long until something is due that no event tells of.
    pub fn timeout(&mut self, now: Instant) -> Option<Duration> {
        self.stack.timeout(now)
    }

    /// Becomes readable when the host has something for the guest.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.forwards.events()
    }

    /// Whether it is for the DHCP server of this link; that of another network is asked like everybody there.
    fn is_dhcp(&self, packet: &Ipv4) -> bool {
        let is_here = packet.destination.is_broadcast() || packet.destination == self.config.router;
        is_here && packet.protocol == UDP && packet.ports().is_some_and(|(_, to)| to == dhcp::SERVER_PORT)
    }

    /// Whether the router takes packets to an address: to one machine, and one that is not the guest itself. Link-local ones
    /// are none of its business, but for a name server that was configured.
    fn is_routed(&self, address: Ipv4Addr) -> bool {
        const RESERVED: u8 = 240;
        let subnet = Cidr { address: self.config.address, prefix_length: self.config.prefix_length };
        let is_subnets_broadcast =
            subnet.prefix_length < 31 && subnet.contains(address) && address.to_bits() | subnet.mask() == u32::MAX;
        let first = address.octets()[0];
        let is_special = first == 0 || first >= RESERVED || address.is_loopback() || address.is_multicast();
        let is_anothers = address.is_link_local() && !self.config.dns.contains(&address);
        !(is_special || is_anothers || is_subnets_broadcast || address == self.config.address)
    }

    fn put(&mut self, frame: Option<Vec<u8>>) {
        if self.frames.len() < WAITING {
            self.frames.extend(frame);
        }
    }
}

#[cfg(test)]
mod tests;
