//! The netstack: network services for one guest, inside the VMM, and the packet filter between guest and network.
//!
//! [`Services`] inspects every frame from and to the guest. It answers ARP and DHCP. Its TCP stack serves instance
//! metadata, and has the router's address, from which forwarded connections reach the guest. Other frames pass if they
//! are from the guest's own address (EC2's source/destination check), go to the gateway, and match the [`filter`].
//!
//! The netstack drops everything except IPv4 unicast. It also drops packets to addresses with a special meaning on the
//! host, because a backend process would, for example, connect to the host's own loopback address.

mod arp;
pub mod broker;
mod dhcp;
mod filter;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
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
use smoltcp::wire::{DHCP_SERVER_PORT, EthernetProtocol, IpProtocol};

use crate::broker::{DatagramChannel, HostPort};
use filter::{Direction, Tracker};
pub use forward::FIRST_PORT;
use forward::Forwards;
pub use machine::network::{
    Filter, FilterProtocol, FilterRule, Forward, GATEWAY_MAC, METADATA_ADDRESS, MacAddress, MetadataConfig,
    NetstackConfig, ParseError, Transport,
};
use metadata::{Metadata, Server};
use packet::{Datagram, Ipv4};
use stack::Stack;

/// The number of leading bytes of a frame that suffice to route it.
pub const HEAD_LENGTH: usize = 256;
/// The maximum number of frames queued for the guest. Further replies outside of TCP connections are dropped.
const WAITING: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Forward,
    Drop,
    /// The caller must pass the whole frame to [`Services::accept`].
    Services,
}

#[derive(Debug)]
pub struct Services {
    mac: MacAddress,
    config: NetstackConfig,
    stack: Stack,
    tracker: Tracker,
    metadata: Option<Metadata>,
    server: Server,
    forwards: Forwards,
    frames: VecDeque<Vec<u8>>,
    /// The identification of the last datagram from a published port, for its fragments.
    identification: u16,
}

impl Services {
    /// `datagrams` carries the datagrams of published UDP ports; the ports are [set](Services::set_ports) later.
    pub fn new(mac: MacAddress, config: NetstackConfig, datagrams: Option<DatagramChannel>) -> io::Result<Services> {
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty())?;
        Services::with_seed(mac, config, u64::from_le_bytes(seed), datagrams)
    }

    /// Like [`Services::new`], with a seed for TCP sequence numbers.
    fn with_seed(
        mac: MacAddress,
        config: NetstackConfig,
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

    /// Replaces the published ports. Those that are not open are reported as [problems](Services::problems).
    pub fn set_ports(&mut self, ports: Vec<(Forward, HostPort)>) {
        self.forwards.set(ports, &mut self.stack);
    }

    /// Applies a new configuration, except for its ports, and the guest's address, prefix length and router.
    /// Established connections stay open, unless the metadata service is removed: its connections are closed.
    pub fn reload(&mut self, config: NetstackConfig) {
        self.tracker.set_rules(config.filter.clone());
        match (&mut self.metadata, &config.metadata) {
            (Some(metadata), Some(content)) => metadata.set(content.clone()),
            (metadata, content) => *metadata = content.clone().map(Metadata::new),
        }
        if self.metadata.is_none() {
            self.server.close(&mut self.stack);
        }
        let (address, router, prefix_length) = (self.config.address, self.config.router, self.config.prefix_length);
        self.config = NetstackConfig { address, router, prefix_length, ..config };
    }

    pub fn problems(&self) -> Vec<String> {
        self.forwards.problems().to_vec()
    }

    /// Returns the destination of a frame. `head` contains its first [`HEAD_LENGTH`] bytes, or the whole frame.
    pub fn from_guest(&mut self, head: &[u8], now: Instant) -> Route {
        let Some(ethernet) = packet::ethernet(head).filter(|frame| frame.src_addr().0 == self.mac.0) else {
            return Route::Drop;
        };
        match ethernet.ethertype() {
            EthernetProtocol::Arp => return Route::Services,
            EthernetProtocol::Ipv4 => {}
            _ => return Route::Drop,
        }
        let Some(packet) = Ipv4::parse(ethernet.payload()) else { return Route::Drop };
        if self.is_dhcp(&packet) {
            return Route::Services;
        }
        if packet.source != self.config.address {
            return Route::Drop;
        }
        if self.stack.has(packet.destination) {
            return Route::Services;
        }
        // A bridge would deliver a frame to a neighbor's MAC address directly, past the router and its filter.
        let is_for_router = ethernet.dst_addr().0 == GATEWAY_MAC.0 && self.is_routed(packet.destination);
        let passes = is_for_router && self.tracker.passes(&packet, Direction::Egress, now);
        if passes { Route::Forward } else { Route::Drop }
    }

    pub fn accept(&mut self, frame: &[u8], now: Instant) {
        let Some(ethernet) = packet::ethernet(frame) else { return };
        if ethernet.ethertype() == EthernetProtocol::Arp {
            let answer = arp::answer(self.mac, self.config.address, ethernet.payload());
            return self.put(answer);
        }
        let Some(packet) = Ipv4::parse(ethernet.payload()) else { return };
        if self.is_dhcp(&packet) {
            let message = Datagram::parse(&packet);
            let answer = message.and_then(|message| dhcp::answer(self.mac, &self.config, message.payload));
            return self.put(answer);
        }
        // smoltcp would treat each fragment as a whole packet.
        if packet.is_fragment() {
            return;
        }
        if packet.destination == METADATA_ADDRESS {
            let is_service = packet.ports().is_some_and(|(_, to)| Server::is_for(to)) && self.metadata.is_some();
            let begins = packet.begins_connection() == Some(true);
            // A connection above the limit is not refused: the guest retransmits, and connects later.
            if is_service && begins && !self.server.expect(&mut self.stack) {
                return;
            }
        } else if packet.protocol == IpProtocol::Udp
            && let Some(datagram) = Datagram::parse(&packet)
            && self.forwards.answer(&datagram)
        {
            return;
        }
        self.stack.arrive(ethernet.payload().to_vec(), now);
    }

    /// Answers the guest's frame with an ICMP "unreachable" message, so that programs fail immediately. ICMP gets no
    /// answer.
    pub fn refuse(&mut self, head: &[u8]) {
        let Some(payload) = packet::ethernet(head).map(|ethernet| ethernet.payload()) else { return };
        let Some(packet) = Ipv4::parse(payload) else { return };
        if packet.protocol != IpProtocol::Icmp && !packet.is_later_fragment() {
            let answer = packet::unreachable(self.config.router, self.config.address, payload);
            self.put(Some(packet::frame(self.mac, GATEWAY_MAC, EthernetProtocol::Ipv4, &answer)));
        }
    }

    /// Returns true if a frame, which starts with `head`, may go to the guest.
    pub fn to_guest(&mut self, head: &[u8], now: Instant) -> bool {
        let is_ipv4 = |ethertype| ethertype == EthernetProtocol::Ipv4;
        let Some(ethernet) = packet::ethernet(head).filter(|frame| is_ipv4(frame.ethertype())) else { return false };
        let Some(packet) = Ipv4::parse(ethernet.payload()) else { return false };
        let is_its = packet.destination == self.config.address && ethernet.dst_addr().0 == self.mac.0;
        // The network must not send packets from the services' addresses.
        is_its && !self.stack.has(packet.source) && self.tracker.passes(&packet, Direction::Ingress, now)
    }

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
                self.put(Some(packet::frame(self.mac, GATEWAY_MAC, EthernetProtocol::Ipv4, &piece)));
            }
        }
        self.stack.poll(now);
    }

    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        let packet = || Some(packet::frame(self.mac, GATEWAY_MAC, EthernetProtocol::Ipv4, &self.stack.next_packet()?));
        self.frames.pop_front().or_else(packet)
    }

    /// Returns the time until the next call of [`Services::poll`] is due, if no event comes before.
    pub fn timeout(&mut self, now: Instant) -> Option<Duration> {
        self.stack.timeout(now)
    }

    /// Returns a descriptor that becomes readable when the host has data for the guest.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.forwards.events()
    }

    /// Returns true for packets to this network's DHCP server. Servers of other networks are ordinary hosts.
    fn is_dhcp(&self, packet: &Ipv4) -> bool {
        let is_here = packet.destination.is_broadcast() || packet.destination == self.config.router;
        is_here && packet.protocol == IpProtocol::Udp && packet.ports().is_some_and(|(_, to)| to == DHCP_SERVER_PORT)
    }

    /// Returns true for unicast addresses of other machines. A link-local address must be a name server's.
    fn is_routed(&self, address: Ipv4Addr) -> bool {
        const RESERVED: u8 = 240;
        let subnet = self.config.subnet();
        let is_subnets_broadcast = subnet.prefix_len() < 31 && address == subnet.broadcast();
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
