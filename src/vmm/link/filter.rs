//! A stateful filter, as security groups are: rules decide who may begin, and what belongs to something that was begun passes
//! both ways.
//!
//! What was begun under rules that have changed since goes on, as tracked connections do in EC2. The table of what was begun
//! is bounded; when it is full, what was idle the longest is forgotten first.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::config::{Filter, FilterProtocol, FilterRule};
use super::packet::{ICMP, Ipv4, TCP, UDP};

/// How much is kept track of.
const LIMIT: usize = 65536;
/// How many first fragments are remembered for those that come later.
const FRAGMENTS: usize = 64;

/// How long something may be idle.
fn idle_limit(protocol: u8) -> Duration {
    match protocol {
        TCP => Duration::from_secs(3600),
        UDP => Duration::from_secs(180),
        _ => Duration::from_secs(30),
    }
}

const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
/// ICMP messages about another packet: unreachable, time exceeded, parameter problem.
const ABOUT_A_PACKET: [u8; 3] = [3, 11, 12];

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Ingress,
    /// From the guest.
    Egress,
}

/// Both directions of what belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    protocol: u8,
    peer: Ipv4Addr,
    /// The peer's port; for an echo, its identifier.
    peer_port: u16,
    guest_port: u16,
}

impl Flow {
    fn of(packet: &Ipv4, direction: Direction) -> Option<Flow> {
        let (source, destination) = match packet.protocol {
            TCP | UDP => packet.ports()?,
            ICMP => {
                let [kind, _, _, _, id_high, id_low] = *packet.payload.first_chunk()?;
                let id = if matches!(kind, ECHO | ECHO_REPLY) { u16::from_be_bytes([id_high, id_low]) } else { 0 };
                (id, id)
            }
            _ => (0, 0),
        };
        let protocol = packet.protocol;
        Some(match direction {
            Direction::Ingress => Flow { protocol, peer: packet.source, peer_port: source, guest_port: destination },
            Direction::Egress => {
                Flow { protocol, peer: packet.destination, peer_port: destination, guest_port: source }
            }
        })
    }
}

/// The rules, and what was begun.
#[derive(Debug, Default)]
pub struct Tracker {
    rules: Option<Filter>,
    flows: HashMap<Flow, Instant>,
    /// First fragments that passed: which way, with whom, of which packet.
    fragments: VecDeque<(Direction, Ipv4Addr, u16, u8)>,
    limit: usize,
}

impl Direction {
    fn peer(self, packet: &Ipv4) -> Ipv4Addr {
        match self {
            Direction::Ingress => packet.source,
            Direction::Egress => packet.destination,
        }
    }
}

impl Tracker {
    /// By these rules; without any, everything passes.
    pub fn new(rules: Option<Filter>) -> Tracker {
        Tracker { rules, limit: LIMIT, ..Tracker::default() }
    }

    /// Other rules for what is begun from now on.
    pub fn set_rules(&mut self, rules: Option<Filter>) {
        self.rules = rules;
    }

    /// Whether a packet may pass, of which there may be the beginning only.
    pub fn passes(&mut self, packet: &Ipv4, direction: Direction, now: Instant) -> bool {
        let Some(rules) = &self.rules else { return true };
        let peer = direction.peer(packet);
        let fragment = (direction, peer, packet.identification, packet.protocol);
        if packet.is_later_fragment {
            return self.fragments.contains(&fragment);
        }
        let Some(flow) = Flow::of(packet, direction) else { return false };
        let rules = match direction {
            Direction::Ingress => &rules.ingress,
            Direction::Egress => &rules.egress,
        };
        let passes = if let Some(seen) = self.flows.get_mut(&flow) {
            let is_live = now.saturating_duration_since(*seen) < idle_limit(flow.protocol);
            if is_live {
                *seen = now;
            }
            is_live
        } else {
            self.is_about_a_flow(packet, direction)
        };
        let passes = passes || rules.iter().any(|rule| allows(rule, peer, packet)) && self.begin(flow, now);
        if passes && self.fragments.back() != Some(&fragment) {
            self.fragments.push_back(fragment);
            if self.fragments.len() > FRAGMENTS {
                self.fragments.pop_front();
            }
        }
        passes
    }

    fn begin(&mut self, flow: Flow, now: Instant) -> bool {
        let mut divisor = 1;
        while self.flows.len() >= self.limit && divisor < 1 << 20 {
            self.flows.retain(|flow, seen| now.saturating_duration_since(*seen) < idle_limit(flow.protocol) / divisor);
            divisor *= 2;
        }
        if self.flows.len() >= self.limit {
            return false;
        }
        self.flows.insert(flow, now);
        true
    }

    /// Whether it is an ICMP message about a packet of something that was begun (RFC 792: it holds that packet's header and 8
    /// bytes more).
    fn is_about_a_flow(&self, packet: &Ipv4, direction: Direction) -> bool {
        if packet.protocol != ICMP || !packet.payload.first().is_some_and(|kind| ABOUT_A_PACKET.contains(kind)) {
            return false;
        }
        let inner = packet.payload.get(8..).and_then(Ipv4::parse);
        // The packet that it is about went the other way.
        let other = match direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        inner.and_then(|inner| Flow::of(&inner, other)).is_some_and(|flow| self.flows.contains_key(&flow))
    }
}

/// Whether a rule lets somebody begin with this packet.
fn allows(rule: &FilterRule, peer: Ipv4Addr, packet: &Ipv4) -> bool {
    let destination_port = || packet.ports().map(|(_, destination)| destination);
    let in_range = |from, to| destination_port().is_some_and(|port| (from..=to).contains(&port));
    let is_of_protocol = match rule.protocol {
        FilterProtocol::All => true,
        FilterProtocol::Tcp { from, to } => packet.protocol == TCP && in_range(from, to),
        FilterProtocol::Udp { from, to } => packet.protocol == UDP && in_range(from, to),
        FilterProtocol::Icmp { kind, code } => {
            let is = |wanted: Option<u8>, at: usize| wanted.is_none_or(|byte| packet.payload.get(at) == Some(&byte));
            packet.protocol == ICMP && is(kind, 0) && is(code, 1)
        }
        FilterProtocol::Other { number } => packet.protocol == number,
    };
    is_of_protocol && rule.peers.iter().any(|range| range.contains(peer))
}

#[cfg(test)]
mod tests {
    use super::super::packet::Datagram;
    use super::*;
    use Direction::{Egress, Ingress};

    const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 4);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
        Datagram { source: from, destination: to, payload: b"x" }.packet().unwrap()
    }

    fn rule(protocol: FilterProtocol, range: &str) -> FilterRule {
        FilterRule { protocol, peers: vec![range.parse().unwrap()] }
    }

    fn icmp(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
        let mut bytes = udp((from, 0), (to, 0));
        bytes.truncate(20);
        bytes[9] = ICMP;
        bytes.extend(message);
        let total = (bytes.len() as u16).to_be_bytes();
        bytes[2..4].copy_from_slice(&total);
        bytes
    }

    struct Bench {
        tracker: Tracker,
        now: Instant,
    }

    impl Bench {
        fn passes(&mut self, bytes: &[u8], direction: Direction) -> bool {
            self.tracker.passes(&Ipv4::parse(bytes).unwrap(), direction, self.now)
        }
    }

    fn bench(ingress: Vec<FilterRule>, egress: Vec<FilterRule>) -> Bench {
        Bench { tracker: Tracker::new(Some(Filter { ingress, egress })), now: Instant::now() }
    }

    #[test]
    fn what_is_answered_passes_until_it_is_idle_too_long() {
        let mut bench = bench(vec![], vec![rule(FilterProtocol::Udp { from: 53, to: 53 }, "0.0.0.0/0")]);
        let (query, answer) = (udp((GUEST, 4000), (PEER, 53)), udp((PEER, 53), (GUEST, 4000)));
        assert!(!bench.passes(&answer, Ingress));
        assert!(bench.passes(&query, Egress));
        assert!(bench.passes(&answer, Ingress));
        assert!(!bench.passes(&udp((PEER, 53), (GUEST, 4001)), Ingress));
        assert!(!bench.passes(&udp((GUEST, 4000), (PEER, 54)), Egress));
        bench.now += Duration::from_secs(181);
        assert!(!bench.passes(&answer, Ingress));
        assert!(bench.passes(&query, Egress));
        assert!(bench.passes(&answer, Ingress));
    }

    #[test]
    fn rules_are_for_ports_and_ranges() {
        let mut bench = bench(vec![rule(FilterProtocol::Udp { from: 80, to: 90 }, "10.0.0.0/24")], vec![]);
        assert!(bench.passes(&udp((PEER, 9), (GUEST, 80)), Ingress));
        assert!(!bench.passes(&udp((PEER, 9), (GUEST, 91)), Ingress));
        assert!(!bench.passes(&udp((Ipv4Addr::new(10, 0, 1, 9), 9), (GUEST, 80)), Ingress));
        assert!(bench.passes(&udp((GUEST, 80), (PEER, 9)), Egress), "the answer");
    }

    #[test]
    fn a_change_is_for_what_is_begun_after_it() {
        let open = rule(FilterProtocol::All, "0.0.0.0/0");
        let mut bench = bench(vec![open], vec![]);
        assert!(bench.passes(&udp((PEER, 9), (GUEST, 80)), Ingress));
        bench.tracker.set_rules(Some(Filter::default()));
        assert!(bench.passes(&udp((PEER, 9), (GUEST, 80)), Ingress));
        assert!(!bench.passes(&udp((PEER, 10), (GUEST, 80)), Ingress));
        bench.tracker.set_rules(None);
        assert!(bench.passes(&udp((PEER, 10), (GUEST, 80)), Ingress));
    }

    #[test]
    fn errors_pass_that_are_about_something_begun() {
        let mut bench = bench(vec![], vec![rule(FilterProtocol::Udp { from: 0, to: 65535 }, "0.0.0.0/0")]);
        let query = udp((GUEST, 4000), (PEER, 53));
        let unreachable = icmp(PEER, GUEST, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &query].concat());
        assert!(!bench.passes(&unreachable, Ingress));
        assert!(bench.passes(&query, Egress));
        assert!(bench.passes(&unreachable, Ingress));
    }

    #[test]
    fn echoes_are_told_apart_by_type_and_identifier() {
        let echo = rule(FilterProtocol::Icmp { kind: Some(ECHO), code: None }, "0.0.0.0/0");
        let mut bench = bench(vec![echo], vec![]);
        assert!(!bench.passes(&icmp(PEER, GUEST, &[13, 0, 0, 0, 0, 7, 0, 0]), Ingress));
        assert!(bench.passes(&icmp(PEER, GUEST, &[ECHO, 0, 0, 0, 0, 7, 0, 0]), Ingress));
        assert!(bench.passes(&icmp(GUEST, PEER, &[ECHO_REPLY, 0, 0, 0, 0, 7, 0, 0]), Egress));
        assert!(!bench.passes(&icmp(GUEST, PEER, &[ECHO_REPLY, 0, 0, 0, 0, 8, 0, 0]), Egress));
    }

    #[test]
    fn a_later_fragment_goes_where_the_first_went() {
        let mut bench = bench(vec![rule(FilterProtocol::Udp { from: 80, to: 80 }, "0.0.0.0/0")], vec![]);
        let first = udp((PEER, 9), (GUEST, 80));
        let mut later = first.clone();
        later[7] = 1;
        assert!(!bench.passes(&later, Ingress));
        assert!(bench.passes(&first, Ingress));
        assert!(bench.passes(&later, Ingress));
        later[5] = 9;
        assert!(!bench.passes(&later, Ingress));
    }

    #[test]
    fn a_full_table_forgets_what_was_idle_the_longest() {
        let mut bench = bench(vec![rule(FilterProtocol::All, "0.0.0.0/0")], vec![]);
        bench.tracker.limit = 8;
        for port in 0..8 {
            assert!(bench.passes(&udp((PEER, port), (GUEST, 80)), Ingress));
            bench.now += Duration::from_secs(10);
        }
        assert!(bench.passes(&udp((PEER, 100), (GUEST, 80)), Ingress));
        assert!(bench.tracker.flows.len() <= 8);
        assert!(bench.passes(&udp((GUEST, 80), (PEER, 7)), Egress), "the latest is still there");
    }
}
