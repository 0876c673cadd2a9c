//! The nftables rules of a VPC.
//!
//! Each direction has a map from instances' addresses to chains of rules. Instances with the same rules share a chain.
//! A new connection passes the egress chain of its source, then its destination's ingress chain or the uplink.
//! Connection tracking accepts replies. Requests to the VPC's name server are always accepted, as in EC2 (Amazon VPC
//! User Guide, "Security groups").
//!
//! A packet to the uplink must have a route through an internet gateway in its source's subnet. Routes have no state: a
//! removed route also ends the traffic of established connections.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::RouterConfig;
use super::namespace::{BRIDGE, OUT, Port};
use ipnet::Ipv4Net;
use machine::network::{FilterProtocol, FilterRule};

/// Renders the whole table, which atomically replaces the previous one.
pub(super) fn render(config: &RouterConfig) -> String {
    let mut text = String::from("table inet wisp\ndelete table inet wisp\ntable inet wisp {\n");
    let egress: Vec<_> = config.interfaces.iter().map(|one| (one.address, one.filter.egress.as_slice())).collect();
    let ingress: Vec<_> = config.interfaces.iter().map(|one| (one.address, one.filter.ingress.as_slice())).collect();
    chains(&mut text, "ingress", &ingress, "saddr", "accept");
    let _ = write!(
        text,
        "  chain delivery {{\n    oifname {BRIDGE} ip daddr vmap @ingress\n    oifname {OUT} accept\n    drop\n  }}\n"
    );
    chains(&mut text, "egress", &egress, "daddr", "goto delivery");
    routes(&mut text, config);
    let _ = write!(
        text,
        "  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname {BRIDGE} oifname {OUT} ip daddr {dns} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname {BRIDGE} oifname {OUT} ip saddr vmap @routes
    ct state established,related accept
    ct state invalid drop
    iifname {BRIDGE} ip saddr vmap @egress
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname lo accept
  }}
  chain way_out {{
    type nat hook postrouting priority srcnat;
    oifname {OUT} masquerade
  }}
}}
",
        dns = config.dns
    );
    text
}

/// Renders the bridge's table, which atomically replaces the previous one. Each port may send only IPv4 packets from
/// its instance's MAC and IP addresses; the VMM itself answers ARP and DHCP. Security group rules can therefore trust a
/// packet's source address.
pub(super) fn render_ports(ports: &[Port]) -> String {
    let element = |Port { tap, mac, address }: &Port| format!("\"{tap}\" . {mac} . {address}");
    let elements: Vec<String> = ports.iter().map(element).collect();
    let elements = match elements.as_slice() {
        [] => String::new(),
        some => format!("\n    elements = {{ {} }}", some.join(", ")),
    };
    format!(
        "table bridge wisp
delete table bridge wisp
table bridge wisp {{
  set ports {{
    type ifname . ether_addr . ipv4_addr{elements}
  }}
  chain prerouting {{
    type filter hook prerouting priority filter; policy drop;
    iifname . ether saddr . ip saddr @ports accept
  }}
}}
"
    )
}

/// Renders the chains of one direction and the map to them. `peer` is nftables' name of the other end's address.
fn chains(text: &mut String, name: &str, interfaces: &[(Ipv4Addr, &[FilterRule])], peer: &str, verdict: &str) {
    let mut alike: BTreeMap<&[FilterRule], Vec<Ipv4Addr>> = BTreeMap::new();
    for (address, rules) in interfaces {
        alike.entry(rules).or_default().push(*address);
    }
    let mut elements = Vec::new();
    for (index, (rules, addresses)) in alike.into_iter().enumerate() {
        let _ = writeln!(text, "  chain {name}{index} {{");
        for rule in rules {
            let _ = writeln!(text, "    {}{}{verdict}", ranges(&rule.peers, peer), matches(rule.protocol));
        }
        let _ = writeln!(text, "    drop\n  }}");
        elements.extend(addresses.iter().map(|address| format!("{address} : goto {name}{index}")));
    }
    map(text, name, &elements);
}

/// Renders a chain for each set of routes, which returns for a destination with a route, and the map to the chains.
fn routes(text: &mut String, config: &RouterConfig) {
    let mut alike: BTreeMap<&[Ipv4Net], Vec<Ipv4Addr>> = BTreeMap::new();
    for interface in &config.interfaces {
        alike.entry(&interface.routes).or_default().push(interface.address);
    }
    let mut elements = Vec::new();
    for (index, (routes, addresses)) in alike.into_iter().enumerate() {
        let _ = writeln!(text, "  chain routes{index} {{");
        if !routes.is_empty() {
            let _ = writeln!(text, "    {}return", ranges(routes, "daddr"));
        }
        let _ = writeln!(text, "    drop\n  }}");
        elements.extend(addresses.iter().map(|address| format!("{address} : jump routes{index}")));
    }
    map(text, "routes", &elements);
}

fn map(text: &mut String, name: &str, elements: &[String]) {
    let _ = writeln!(text, "  map {name} {{\n    type ipv4_addr : verdict");
    if !elements.is_empty() {
        let _ = writeln!(text, "    elements = {{ {} }}", elements.join(", "));
    }
    let _ = writeln!(text, "  }}");
}

/// Renders the match of a packet's address field against ranges.
fn ranges(ranges: &[Ipv4Net], field: &str) -> String {
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return String::new();
    }
    // Merge overlapping ranges: nftables rejects overlaps.
    let peers: Vec<Ipv4Net> = ranges.iter().map(Ipv4Net::trunc).collect();
    let ranges: Vec<String> = Ipv4Net::aggregate(&peers).iter().map(Ipv4Net::to_string).collect();
    format!("ip {field} {{ {} }} ", ranges.join(", "))
}

fn matches(protocol: FilterProtocol) -> String {
    match protocol {
        FilterProtocol::All => String::new(),
        FilterProtocol::Tcp { from, to } => format!("tcp dport {from}-{to} "),
        FilterProtocol::Udp { from, to } => format!("udp dport {from}-{to} "),
        FilterProtocol::Icmp { kind, code } => {
            let kind = kind.map(|kind| format!("icmp type {kind} ")).unwrap_or_default();
            let code = code.map(|code| format!("icmp code {code} ")).unwrap_or_default();
            format!("ip protocol icmp {kind}{code}")
        }
        FilterProtocol::Other { number } => format!("ip protocol {number} "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Interface;
    use super::*;
    use machine::network::{Filter, MacAddress};

    fn interface(number: u8, ingress: Vec<FilterRule>) -> Interface {
        let egress = vec![FilterRule { protocol: FilterProtocol::All, peers: vec!["0.0.0.0/0".parse().unwrap()] }];
        let address = Ipv4Addr::new(172, 31, 0, number);
        let dir = format!("i-{number}").into();
        Interface {
            address,
            dir,
            mac: MacAddress([6, 0, 0, 0, 0, number]),
            filter: Filter { ingress, egress },
            routes: Vec::new(),
        }
    }

    fn render_with(interfaces: Vec<Interface>) -> String {
        render(&RouterConfig {
            range: "172.31.0.0/16".parse().unwrap(),
            router: Ipv4Addr::new(172, 31, 0, 1),
            dns: Ipv4Addr::new(172, 31, 0, 2),
            mtu: 9001,
            interfaces,
        })
    }

    #[test]
    fn instances_with_the_same_rules_share_a_chain() {
        let ssh = FilterRule {
            protocol: FilterProtocol::Tcp { from: 22, to: 22 },
            peers: vec![Ipv4Addr::new(172, 31, 0, 9).into(), "172.31.0.0/24".parse().unwrap()],
        };
        let text =
            render_with(vec![interface(4, vec![ssh.clone()]), interface(5, vec![ssh]), interface(6, Vec::new())]);
        assert!(text.contains("ip saddr { 172.31.0.0/24 } tcp dport 22-22 accept"), "{text}");
        assert!(text.contains("172.31.0.4 : goto ingress1, 172.31.0.5 : goto ingress1"), "{text}");
        assert!(text.contains("172.31.0.6 : goto ingress0"), "{text}");
        assert_eq!(text.matches("chain egress").count(), 1, "{text}");
    }

    #[test]
    fn packet_to_uplink_needs_a_route() {
        let (mut routed, mut narrow) = (interface(4, Vec::new()), interface(5, Vec::new()));
        routed.routes = vec!["0.0.0.0/0".parse().unwrap()];
        narrow.routes = vec!["10.1.0.0/16".parse().unwrap(), "10.1.2.0/24".parse().unwrap()];
        let text = render_with(vec![routed, narrow, interface(6, Vec::new())]);
        assert!(text.contains("chain routes0 {\n    drop\n"), "{text}");
        assert!(text.contains("chain routes1 {\n    return\n    drop\n"), "{text}");
        assert!(text.contains("chain routes2 {\n    ip daddr { 10.1.0.0/16 } return\n    drop\n"), "{text}");
        let elements = "172.31.0.6 : jump routes0, 172.31.0.4 : jump routes1, 172.31.0.5 : jump routes2";
        assert!(text.contains(elements), "{text}");
    }

    #[test]
    fn ports_are_bound_to_their_addresses() {
        let port = |number: u8| Port {
            tap: format!("tap{number}"),
            mac: MacAddress([6, 0, 0, 0, 0, number]),
            address: Ipv4Addr::new(172, 31, 0, number),
        };
        let text = render_ports(&[port(4), port(5)]);
        let elements = "{ \"tap4\" . 06:00:00:00:00:04 . 172.31.0.4, \"tap5\" . 06:00:00:00:00:05 . 172.31.0.5 }";
        assert!(text.contains(elements) && text.contains("policy drop"), "{text}");
        assert!(!render_ports(&[]).contains("elements"));
    }

    #[test]
    fn network_without_instances_has_no_elements() {
        let text = render_with(Vec::new());
        assert!(!text.contains("elements"), "{text}");
        assert!(text.contains("policy drop"), "{text}");
    }
}
