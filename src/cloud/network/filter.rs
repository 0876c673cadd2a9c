//! Translates an instance's security groups to its packet filter and to the forwarded ports of its public address.

use std::net::{Ipv4Addr, SocketAddrV4};

use ec2::id::SecurityGroupId;
use ec2::network::{Peer, Rule, Traffic};
use ec2::state::InstanceState;
use ipnet::Ipv4Net;
use machine::network::{Filter, FilterProtocol, FilterRule, Forward, Transport};
use store::{InstanceRecord, NetworkRecord, SecurityGroupRecord};

/// If a rule opens more ports than this, only those of [`KNOWN`] are forwarded from a public address.
const MANY: u16 = 64;
/// Ports that programs commonly listen on.
const KNOWN: [u16; 24] = [
    21, 22, 25, 53, 80, 110, 143, 389, 443, 465, 587, 993, 1433, 1521, 3000, 3306, 5000, 5432, 6379, 8000, 8080, 8443,
    9000, 27017,
];

pub(super) fn groups_of(record: &InstanceRecord) -> &[SecurityGroupId] {
    record.status.network.as_ref().map_or(&[], |network| &network.security_groups)
}

pub(super) fn filters(groups: &[SecurityGroupRecord], instances: &[InstanceRecord], network: &NetworkRecord) -> Filter {
    let own = groups.iter().filter(|group| network.security_groups.contains(&group.meta.id));
    filter_of(own.flat_map(|group| &group.spec.rules), |group| members(instances, group))
}

/// Returns the private addresses of a group's members, excluding terminated instances.
fn members(instances: &[InstanceRecord], group: SecurityGroupId) -> Vec<Ipv4Addr> {
    let living = instances.iter().filter(|record| record.status.state != InstanceState::Terminated);
    let in_it = living.filter(|record| groups_of(record).contains(&group));
    in_it.filter_map(|record| record.status.network.as_ref().map(|network| network.private_ip)).collect()
}

/// Builds the packet filter for `rules`. `members` returns the addresses of a group's members.
pub(super) fn filter_of<'a>(
    rules: impl Iterator<Item = &'a Rule> + Clone,
    members: impl Fn(SecurityGroupId) -> Vec<Ipv4Addr>,
) -> Filter {
    let one_way = |egress: bool| {
        let of_way = rules.clone().filter(|rule| rule.egress == egress);
        let mut rules: Vec<FilterRule> = of_way
            .map(|rule| {
                let peers = match rule.peer {
                    Peer::Range(range) => vec![range],
                    Peer::Group(group) => members(group).into_iter().map(Ipv4Net::from).collect(),
                };
                FilterRule { protocol: protocol(rule.traffic), peers }
            })
            .filter(|rule| !rule.peers.is_empty())
            .collect();
        rules.sort();
        rules.dedup();
        rules
    };
    Filter { ingress: one_way(false), egress: one_way(true) }
}

fn protocol(traffic: Traffic) -> FilterProtocol {
    match traffic {
        Traffic::All => FilterProtocol::All,
        Traffic::Tcp { from, to } => FilterProtocol::Tcp { from, to },
        Traffic::Udp { from, to } => FilterProtocol::Udp { from, to },
        Traffic::Icmp { kind, code } => FilterProtocol::Icmp { kind, code },
        Traffic::Other { number } => FilterProtocol::Other { number },
    }
}

/// Returns the forwarded ports of a public address, which is on the host's loopback interface: the ports that ingress
/// rules open to the host. A rule with more than [`MANY`] ports contributes only those in [`KNOWN`].
pub(super) fn public_forwards(public: Ipv4Addr, filter: &Filter) -> Vec<Forward> {
    let opens = |rule: &&FilterRule| rule.peers.iter().any(|range| range.contains(&Ipv4Addr::LOCALHOST));
    let mut forwards = Vec::new();
    for rule in filter.ingress.iter().filter(opens) {
        let ranges = match rule.protocol {
            FilterProtocol::Tcp { from, to } => vec![(Transport::Tcp, from, to)],
            FilterProtocol::Udp { from, to } => vec![(Transport::Udp, from, to)],
            FilterProtocol::All => vec![(Transport::Tcp, 0, u16::MAX), (Transport::Udp, 0, u16::MAX)],
            FilterProtocol::Icmp { .. } | FilterProtocol::Other { .. } => Vec::new(),
        };
        for (transport, from, to) in ranges {
            let is_wide = to - from >= MANY;
            let ports = (from.max(1)..=to).filter(|port| !is_wide || KNOWN.contains(port));
            let forward = |port| Forward { transport, host: SocketAddrV4::new(public, port), guest_port: port };
            forwards.extend(ports.map(forward));
        }
    }
    forwards.sort();
    forwards.dedup();
    forwards
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: Ipv4Addr = Ipv4Addr::new(127, 18, 0, 5);

    fn rule(egress: bool, traffic: Traffic, peer: &str) -> Rule {
        let peer = match peer.strip_prefix("sg-") {
            Some(_) => Peer::Group(peer.parse().unwrap()),
            None => Peer::Range(peer.parse().unwrap()),
        };
        let id = "sgr-0123456789abcdef0".parse().unwrap();
        Rule { id, egress, traffic, peer, description: None, tags: Default::default() }
    }

    #[test]
    fn group_peers_are_member_addresses() {
        let ssh = Traffic::Tcp { from: 22, to: 22 };
        let rules = [
            rule(false, ssh, "sg-0123456789abcdef0"),
            rule(false, Traffic::All, "sg-00000000000000000"),
            rule(true, Traffic::All, "0.0.0.0/0"),
        ];
        let member = Ipv4Addr::new(172, 31, 0, 9);
        let members = |group| if Peer::Group(group) == rules[0].peer { vec![member] } else { Vec::new() };
        let filter = filter_of(rules.iter(), members);
        let protocol = FilterProtocol::Tcp { from: 22, to: 22 };
        assert_eq!(filter.ingress, [FilterRule { protocol, peers: vec![member.into()] }]);
        assert_eq!(filter.egress.len(), 1);
    }

    #[test]
    fn public_address_forwards_ports_open_to_host() {
        let ports = |rules: &[Rule]| {
            let filter = filter_of(rules.iter(), |_| Vec::new());
            public_forwards(PUBLIC, &filter).into_iter().map(|forward| forward.guest_port).collect::<Vec<_>>()
        };
        let web = Traffic::Tcp { from: 80, to: 81 };
        assert_eq!(ports(&[rule(false, web, "0.0.0.0/0"), rule(false, web, "127.0.0.0/8")]), [80, 81]);
        assert!(ports(&[rule(false, web, "10.0.0.0/8"), rule(true, web, "0.0.0.0/0")]).is_empty());
        let wide = ports(&[rule(false, Traffic::Tcp { from: 0, to: 65535 }, "0.0.0.0/0")]);
        assert_eq!(wide, KNOWN);
        assert_eq!(ports(&[rule(false, Traffic::All, "0.0.0.0/0")]).len(), 2 * KNOWN.len());
    }
}
