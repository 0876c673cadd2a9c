//! A stateful packet filter for security groups. Rules decide about new connections; packets of established connections
//! pass in both directions, even after a change of rules, like tracked connections in EC2.
//!
//! The connection table is bounded: when it is full, the connections that were idle longest are removed.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::packet::Ipv4;
use machine::network::{Filter, FilterProtocol, FilterRule};

const LIMIT: usize = 65536;
const FIRST_SWEEP: usize = 1024;
/// Number of first fragments that are remembered for later fragments.
const FRAGMENTS: usize = 64;

fn idle_limit(protocol: IpProtocol) -> Duration {
    match protocol {
        IpProtocol::Tcp => Duration::from_secs(3600),
        IpProtocol::Udp => Duration::from_secs(180),
        _ => Duration::from_secs(30),
    }
}

const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
/// ICMP error messages about a packet: unreachable, time exceeded, parameter problem.
const ABOUT_A_PACKET: [u8; 3] = [3, 11, 12];
/// The offset in bytes of a fragment that would overwrite the TCP flags in the first fragment (RFC 3128).
const OVER_THE_FLAGS: u16 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Ingress,
    /// From the guest.
    Egress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The start of a flow. The rules apply to it even if a flow with these ports exists.
    Begin,
    /// From the initiator.
    Request,
    /// From the responder.
    Reply,
    /// From either side.
    Either,
    /// Not part of a flow.
    Alone,
}

/// Identifies a connection; the same value in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    protocol: IpProtocol,
    peer: Ipv4Addr,
    /// For an ICMP query, its identifier.
    peer_port: u16,
    /// For an ICMP query, its type.
    guest_port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Tracked {
    first_direction: Direction,
    seen: Instant,
}

/// Returns a packet's flow and its role in the flow, or `None` if the packet is too short.
fn classify(packet: &Ipv4, direction: Direction) -> Option<(Flow, Part)> {
    let (source, destination, part) = match packet.protocol {
        IpProtocol::Tcp | IpProtocol::Udp => {
            let (source, destination) = packet.ports()?;
            // Refuse a packet without flags, which a later fragment could add. TCP never sends one so short (RFC 1858).
            let begins = packet.protocol == IpProtocol::Tcp && packet.begins_connection()?;
            (source, destination, if begins { Part::Begin } else { Part::Either })
        }
        IpProtocol::Icmp => {
            let part = icmp_part(*packet.payload.first()?);
            match part {
                (Part::Alone, _) => (0, 0, Part::Alone),
                (part, query) => {
                    let [_, _, _, _, id_high, id_low] = *packet.payload.first_chunk()?;
                    let id = u16::from_be_bytes([id_high, id_low]);
                    return Some((Flow::new(packet, direction.peer(packet), id, query.into()), part));
                }
            }
        }
        _ => (0, 0, Part::Either),
    };
    Some((Flow::between(packet, direction, source, destination), part))
}

/// Returns an ICMP message's role, and the type of the query (echo, timestamp, information, address mask).
fn icmp_part(kind: u8) -> (Part, u8) {
    match kind {
        ECHO | 13 | 15 | 17 => (Part::Request, kind),
        ECHO_REPLY => (Part::Reply, ECHO),
        14 | 16 | 18 => (Part::Reply, kind - 1),
        _ => (Part::Alone, kind),
    }
}

impl Flow {
    fn between(packet: &Ipv4, direction: Direction, source: u16, destination: u16) -> Flow {
        let (peer_port, guest_port) = match direction {
            Direction::Ingress => (source, destination),
            Direction::Egress => (destination, source),
        };
        Flow::new(packet, direction.peer(packet), peer_port, guest_port)
    }

    fn new(packet: &Ipv4, peer: Ipv4Addr, peer_port: u16, guest_port: u16) -> Flow {
        Flow { protocol: packet.protocol, peer, peer_port, guest_port }
    }
}

impl Tracked {
    fn is_live(&self, flow: &Flow, now: Instant) -> bool {
        now.saturating_duration_since(self.seen) < idle_limit(flow.protocol)
    }
}

#[derive(Debug)]
pub struct Tracker {
    rules: Option<Filter>,
    flows: HashMap<Flow, Tracked>,
    /// First fragments that passed: direction, peer, identification and protocol.
    fragments: VecDeque<(Direction, Ipv4Addr, u16, IpProtocol)>,
    sweep_at: usize,
    limit: usize,
}

impl Direction {
    fn peer(self, packet: &Ipv4) -> Ipv4Addr {
        match self {
            Direction::Ingress => packet.source,
            Direction::Egress => packet.destination,
        }
    }

    fn other(self) -> Direction {
        match self {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        }
    }
}

impl Tracker {
    /// Creates an empty connection table. Without rules, all packets pass.
    pub fn new(rules: Option<Filter>) -> Tracker {
        let (flows, fragments) = (HashMap::new(), VecDeque::new());
        Tracker { rules, flows, fragments, sweep_at: FIRST_SWEEP, limit: LIMIT }
    }

    pub fn set_rules(&mut self, rules: Option<Filter>) {
        self.rules = rules;
    }

    /// Returns true if a packet may pass, and tracks its connection. `packet` may be truncated after its headers.
    pub fn passes(&mut self, packet: &Ipv4, direction: Direction, now: Instant) -> bool {
        if self.rules.is_none() {
            return true;
        }
        let fragment = (direction, direction.peer(packet), packet.identification, packet.protocol);
        if packet.is_later_fragment() {
            let is_over_flags = packet.protocol == IpProtocol::Tcp && packet.fragment_offset == OVER_THE_FLAGS;
            return !is_over_flags && self.fragments.contains(&fragment);
        }
        let Some((flow, part)) = classify(packet, direction) else { return false };
        let is_known = self.belongs(&flow, part, direction, now) || self.is_about_a_flow(packet, direction, now);
        let passes = is_known || self.is_allowed(packet, direction);
        if passes && !is_known && !matches!(part, Part::Reply | Part::Alone) {
            self.begin(flow, direction, now);
        }
        if passes && packet.has_more_fragments {
            self.fragments.push_back(fragment);
            if self.fragments.len() > FRAGMENTS {
                self.fragments.pop_front();
            }
        }
        passes
    }

    fn is_allowed(&self, packet: &Ipv4, direction: Direction) -> bool {
        let peer = direction.peer(packet);
        self.rules.as_ref().is_none_or(|rules| {
            let rules = match direction {
                Direction::Ingress => &rules.ingress,
                Direction::Egress => &rules.egress,
            };
            rules.iter().any(|rule| allows(rule, peer, packet))
        })
    }

    /// Returns true if a packet belongs to an established flow, and refreshes the flow's idle timer.
    fn belongs(&mut self, flow: &Flow, part: Part, direction: Direction, now: Instant) -> bool {
        let Some(tracked) = self.flows.get_mut(flow).filter(|tracked| tracked.is_live(flow, now)) else { return false };
        let belongs = match part {
            Part::Begin | Part::Alone => false,
            Part::Request => tracked.first_direction == direction,
            Part::Reply => tracked.first_direction != direction,
            Part::Either => true,
        };
        if belongs {
            tracked.seen = now;
        }
        belongs
    }

    fn begin(&mut self, flow: Flow, direction: Direction, now: Instant) {
        if self.flows.len() >= self.sweep_at.min(self.limit) {
            self.sweep(now);
        }
        self.flows.insert(flow, Tracked { first_direction: direction, seen: now });
    }

    /// Removes expired flows. If the table is still full, removes the eighth that was idle longest, so that sweeps are
    /// rare.
    fn sweep(&mut self, now: Instant) {
        self.flows.retain(|flow, tracked| tracked.is_live(flow, now));
        if self.flows.len() >= self.limit {
            let mut left = (self.limit / 8).max(1);
            let mut seen: Vec<Instant> = self.flows.values().map(|tracked| tracked.seen).collect();
            let (_, latest, _) = seen.select_nth_unstable(left - 1);
            self.flows.retain(|_, tracked| {
                let goes = left > 0 && tracked.seen <= *latest;
                left -= usize::from(goes);
                !goes
            });
        }
        self.sweep_at = (2 * self.flows.len()).max(FIRST_SWEEP);
        self.flows.shrink_to(self.sweep_at);
    }

    /// Returns true for an ICMP error about a packet of an established flow. The error quotes that packet's header and
    /// 8 more bytes (RFC 792).
    fn is_about_a_flow(&self, packet: &Ipv4, direction: Direction, now: Instant) -> bool {
        if packet.protocol != IpProtocol::Icmp
            || !packet.payload.first().is_some_and(|kind| ABOUT_A_PACKET.contains(kind))
        {
            return false;
        }
        // The quoted packet went in the opposite direction.
        let Some(inner) = packet.payload.get(8..).and_then(Ipv4::parse) else { return false };
        let Some(flow) = quoted_flow(&inner, direction.other()) else { return false };
        self.flows.get(&flow).is_some_and(|tracked| tracked.is_live(&flow, now))
    }
}

/// Returns the flow of a quoted packet, which may have only 8 bytes after its header and thus no TCP flags.
fn quoted_flow(packet: &Ipv4, direction: Direction) -> Option<Flow> {
    if packet.protocol != IpProtocol::Tcp {
        return classify(packet, direction).map(|(flow, _)| flow);
    }
    let (source, destination) = packet.ports()?;
    Some(Flow::between(packet, direction, source, destination))
}

fn allows(rule: &FilterRule, peer: Ipv4Addr, packet: &Ipv4) -> bool {
    let destination_port = || packet.ports().map(|(_, destination)| destination);
    let in_range = |from, to| destination_port().is_some_and(|port| (from..=to).contains(&port));
    let is_of_protocol = match rule.protocol {
        FilterProtocol::All => true,
        FilterProtocol::Tcp { from, to } => packet.protocol == IpProtocol::Tcp && in_range(from, to),
        FilterProtocol::Udp { from, to } => packet.protocol == IpProtocol::Udp && in_range(from, to),
        FilterProtocol::Icmp { kind, code } => {
            let is = |wanted: Option<u8>, at: usize| wanted.is_none_or(|byte| packet.payload.get(at) == Some(&byte));
            packet.protocol == IpProtocol::Icmp && is(kind, 0) && is(code, 1)
        }
        FilterProtocol::Other { number } => u8::from(packet.protocol) == number,
    };
    is_of_protocol && rule.peers.iter().any(|range| range.contains(&peer))
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
        bytes[9] = IpProtocol::Icmp.into();
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
    fn replies_pass_until_idle_timeout() {
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
    fn rules_match_ports_and_peer_ranges() {
        let mut bench = bench(vec![rule(FilterProtocol::Udp { from: 80, to: 90 }, "10.0.0.0/24")], vec![]);
        assert!(bench.passes(&udp((PEER, 9), (GUEST, 80)), Ingress));
        assert!(!bench.passes(&udp((PEER, 9), (GUEST, 91)), Ingress));
        assert!(!bench.passes(&udp((Ipv4Addr::new(10, 0, 1, 9), 9), (GUEST, 80)), Ingress));
        assert!(bench.passes(&udp((GUEST, 80), (PEER, 9)), Egress), "the reply");
    }

    #[test]
    fn rule_change_applies_to_new_flows_only() {
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
    fn icmp_error_about_tracked_flow_passes() {
        let mut bench = bench(vec![], vec![rule(FilterProtocol::Udp { from: 0, to: 65535 }, "0.0.0.0/0")]);
        let query = udp((GUEST, 4000), (PEER, 53));
        let unreachable = icmp(PEER, GUEST, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &query].concat());
        assert!(!bench.passes(&unreachable, Ingress));
        assert!(bench.passes(&query, Egress));
        assert!(bench.passes(&unreachable, Ingress));
    }

    #[test]
    fn icmp_queries_match_by_type_and_identifier() {
        let echo = rule(FilterProtocol::Icmp { kind: Some(ECHO), code: None }, "0.0.0.0/0");
        let mut bench = bench(vec![echo], vec![]);
        assert!(!bench.passes(&icmp(PEER, GUEST, &[13, 0, 0, 0, 0, 7, 0, 0]), Ingress));
        assert!(bench.passes(&icmp(PEER, GUEST, &[ECHO, 0, 0, 0, 0, 7, 0, 0]), Ingress));
        assert!(bench.passes(&icmp(GUEST, PEER, &[ECHO_REPLY, 0, 0, 0, 0, 7, 0, 0]), Egress));
        assert!(!bench.passes(&icmp(GUEST, PEER, &[ECHO_REPLY, 0, 0, 0, 0, 8, 0, 0]), Egress));
    }

    #[test]
    fn later_fragment_passes_only_after_first() {
        let mut bench = bench(vec![rule(FilterProtocol::Udp { from: 80, to: 80 }, "0.0.0.0/0")], vec![]);
        let mut first = udp((PEER, 9), (GUEST, 80));
        let mut later = first.clone();
        first[6] = 0x20;
        later[7] = 1;
        assert!(!bench.passes(&later, Ingress));
        assert!(bench.passes(&first, Ingress));
        assert!(bench.passes(&later, Ingress));
        later[5] = 9;
        assert!(!bench.passes(&later, Ingress));
    }

    #[test]
    fn full_table_evicts_longest_idle_flows() {
        let mut bench = bench(vec![rule(FilterProtocol::All, "0.0.0.0/0")], vec![]);
        bench.tracker.limit = 8;
        for port in 0..8 {
            assert!(bench.passes(&udp((PEER, port), (GUEST, 80)), Ingress));
            bench.now += Duration::from_secs(10);
        }
        assert!(bench.passes(&udp((PEER, 100), (GUEST, 80)), Ingress));
        assert!(bench.tracker.flows.len() <= 8);
        assert!(bench.passes(&udp((GUEST, 80), (PEER, 7)), Egress), "the latest connection is kept");
    }

    fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
        let mut bytes = udp(from, to);
        bytes.truncate(24);
        bytes[9] = IpProtocol::Tcp.into();
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes[2..4].copy_from_slice(&40_u16.to_be_bytes());
        bytes
    }

    #[test]
    fn new_syn_on_tracked_ports_is_checked_by_rules() {
        let mut bench = bench(vec![rule(FilterProtocol::Tcp { from: 80, to: 80 }, "0.0.0.0/0")], vec![]);
        let (syn, segment) = (tcp((PEER, 9), (GUEST, 80), 2), tcp((PEER, 9), (GUEST, 80), 0x10));
        assert!(bench.passes(&syn, Ingress));
        bench.tracker.set_rules(Some(Filter::default()));
        assert!(bench.passes(&segment, Ingress), "established connections stay open");
        assert!(bench.passes(&tcp((GUEST, 80), (PEER, 9), 0x12), Egress));
        assert!(!bench.passes(&syn, Ingress), "a new connection is rejected");
        assert!(!bench.passes(&tcp((GUEST, 80), (PEER, 9), 2), Egress), "a new outbound connection is rejected");
    }

    #[test]
    fn echo_reply_passes_and_inbound_echo_is_refused() {
        let mut bench = bench(vec![], vec![rule(FilterProtocol::All, "0.0.0.0/0")]);
        assert!(bench.passes(&icmp(GUEST, PEER, &[ECHO, 0, 0, 0, 0, 7, 0, 0]), Egress));
        assert!(!bench.passes(&icmp(PEER, GUEST, &[ECHO, 0, 0, 0, 0, 7, 0, 0]), Ingress));
        assert!(bench.passes(&icmp(PEER, GUEST, &[ECHO_REPLY, 0, 0, 0, 0, 7, 0, 0]), Ingress));
        // Timestamp requests and redirects.
        assert!(bench.passes(&icmp(GUEST, PEER, &[13, 0, 0, 0, 0, 7, 0, 0]), Egress));
        assert!(!bench.passes(&icmp(PEER, GUEST, &[5, 0, 0, 0, 0, 7, 0, 0]), Ingress));
    }

    #[test]
    fn first_fragment_is_remembered_among_other_packets() {
        let mut bench = bench(vec![rule(FilterProtocol::Udp { from: 80, to: 80 }, "0.0.0.0/0")], vec![]);
        let mut first = udp((PEER, 9), (GUEST, 80));
        first[6] = 0x20;
        let mut later = udp((PEER, 9), (GUEST, 80));
        later[7] = 1;
        assert!(bench.passes(&first, Ingress));
        for id in 1..200 {
            let mut other = udp((PEER, 9), (GUEST, 80));
            other[5] = id;
            assert!(bench.passes(&other, Ingress));
        }
        assert!(bench.passes(&later, Ingress));
    }

    #[test]
    fn fragment_that_could_carry_tcp_flags_is_refused() {
        let mut bench = bench(vec![rule(FilterProtocol::All, "0.0.0.0/0")], vec![]);
        let mut short = tcp((PEER, 9), (GUEST, 80), 0x10);
        short.truncate(28);
        short[2..4].copy_from_slice(&28_u16.to_be_bytes());
        short[6] = 0x20;
        assert!(!bench.passes(&short, Ingress));
        let mut first = tcp((PEER, 9), (GUEST, 80), 0x10);
        first[6] = 0x20;
        assert!(bench.passes(&first, Ingress));
        let mut over_it = tcp((PEER, 9), (GUEST, 80), 2);
        over_it[7] = 1;
        assert!(!bench.passes(&over_it, Ingress));
        over_it[7] = 3;
        assert!(bench.passes(&over_it, Ingress));
    }

    #[test]
    fn expired_flows_are_removed() {
        let mut bench = bench(vec![rule(FilterProtocol::All, "0.0.0.0/0")], vec![]);
        for round in 0..40_u8 {
            for port in 0..500 {
                assert!(bench.passes(&udp((Ipv4Addr::new(10, 0, 1, round), port), (GUEST, 80)), Ingress));
            }
            bench.now += Duration::from_secs(200);
        }
        assert!(bench.tracker.flows.len() < 5000, "{}", bench.tracker.flows.len());
    }
}
