//! Interfaces, addresses, routes and neighbors of this process's network namespace, over rtnetlink (rtnetlink(7)).

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily as SocketFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{connect, recv, send, socket_with};

use machine::network::MacAddress;

/// Size of the receive buffer in bytes. The kernel's dumps come in parts of at most 32 KiB.
const BUFFER: usize = 64 << 10;
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// A netlink socket for changes and queries.
#[derive(Debug)]
pub(super) struct Links {
    socket: OwnedFd,
    sequence: u32,
}

/// An entry of a bridge's forwarding table that an administrator added.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StaticEntry {
    pub mac: MacAddress,
    /// Name of the bridge port.
    pub port: String,
}

impl Links {
    pub(super) fn open() -> io::Result<Links> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(SocketFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Links { socket, sequence: 0 })
    }

    /// Creates a bridge without multicast snooping and ARP, and brings it up.
    pub(super) fn add_bridge(&mut self, name: &str, mac: MacAddress, mtu: u16) -> io::Result<()> {
        let mut bridge = LinkMessage::default();
        bridge.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
            ]),
        ];
        self.change(&format!("create the bridge {name}"), RouteNetlinkMessage::NewLink(bridge), CREATE)?;
        let flags = LinkFlags::Up | LinkFlags::Noarp;
        self.set(name, flags, flags, Vec::new())
    }

    pub(super) fn set_up(&mut self, name: &str) -> io::Result<()> {
        self.set(name, LinkFlags::Up, LinkFlags::Up, Vec::new())
    }

    pub(super) fn set_up_with_mtu(&mut self, name: &str, mtu: u16) -> io::Result<()> {
        self.set(name, LinkFlags::Up, LinkFlags::Up, vec![LinkAttribute::Mtu(mtu.into())])
    }

    /// Makes an interface a port of a bridge. The port is isolated from other ports, learns no addresses and gets no
    /// flooded frames. It forwards nothing until the interface is up.
    pub(super) fn add_port(&mut self, name: &str, bridge: &str, mtu: u16) -> io::Result<()> {
        let bridge = index(bridge)?;
        let attributes = vec![LinkAttribute::Mtu(mtu.into()), LinkAttribute::Controller(bridge)];
        self.set(name, LinkFlags::empty(), LinkFlags::empty(), attributes)?;
        let port = vec![
            InfoBridgePort::Isolated(true),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(false),
            InfoBridgePort::BroadcastFlood(false),
        ];
        let port = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(InfoPortData::BridgePort(port))];
        self.set(name, LinkFlags::empty(), LinkFlags::empty(), vec![LinkAttribute::LinkInfo(port)])
    }

    pub(super) fn delete(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index(name)?;
        self.change(&format!("delete the interface {name}"), RouteNetlinkMessage::DelLink(link), 0)
    }

    /// Sets the flags `flags` of those in `mask`, and the attributes.
    fn set(&mut self, name: &str, flags: LinkFlags, mask: LinkFlags, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index(name)?;
        link.header.flags = flags;
        link.header.change_mask = mask;
        link.attributes = attributes;
        self.change(&format!("configure the interface {name}"), RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Adds an address to an interface, or replaces it.
    pub(super) fn set_address(&mut self, name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.index = index(name)?;
        message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
        self.change(&format!("set the address {address} of {name}"), RouteNetlinkMessage::NewAddress(message), REPLACE)
    }

    /// Adds or replaces a route to `destination` through an interface, by way of `gateway` if there is one.
    pub(super) fn set_route(&mut self, destination: Ipv4Net, gateway: Option<Ipv4Addr>, name: &str) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet,
            destination_prefix_length: destination.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(destination.network())),
            RouteAttribute::Oif(index(name)?),
        ];
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::Inet(gateway))));
        self.change(&format!("add a route to {destination}"), RouteNetlinkMessage::NewRoute(message), REPLACE)
    }

    /// Sets the MAC address of a neighbor for good, so that it is never resolved.
    pub(super) fn set_neighbor(&mut self, address: Ipv4Addr, mac: MacAddress, name: &str) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index(name)?;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        ];
        self.change(&format!("add the neighbor {address}"), RouteNetlinkMessage::NewNeighbour(message), REPLACE)
    }

    /// Adds a MAC address to the forwarding table of the bridge that has this port.
    pub(super) fn add_static_entry(&mut self, mac: MacAddress, port: &str) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index(port)?;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        self.change(&format!("add {mac} to the bridge"), RouteNetlinkMessage::NewNeighbour(message), REPLACE)
    }

    /// Returns the entries that [`add_static_entry`](Self::add_static_entry) added to a bridge.
    pub(super) fn static_entries(&mut self, bridge: &str) -> io::Result<Vec<StaticEntry>> {
        let bridge = index(bridge)?;
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Bridge;
        self.send(RouteNetlinkMessage::GetNeighbour(query), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut entries = Vec::new();
        loop {
            for message in self.receive()? {
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(entries),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => {
                        entries.extend(static_entry(&entry, bridge)?);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Sends a change and waits for the kernel's acknowledgment. `what` is a clause such as "add a route".
    fn change(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for message in self.receive()? {
                if let NetlinkPayload::Error(answer) = message.payload {
                    let failed = |error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"));
                    return if answer.code.is_none() { Ok(()) } else { Err(failed(answer.to_io())) };
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Receives the messages of one datagram that answer the last request.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut buffer = vec![0; BUFFER];
        let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        let (mut rest, mut messages) = (&buffer[..length], Vec::new());
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            // Messages are aligned to 4 bytes.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}

fn static_entry(entry: &NeighbourMessage, bridge: u32) -> io::Result<Option<StaticEntry>> {
    let is_of_bridge = entry.attributes.contains(&NeighbourAttribute::Controller(bridge));
    let mac = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some(MacAddress(bytes.as_slice().try_into().ok()?)),
        _ => None,
    });
    match mac {
        Some(mac) if is_of_bridge && entry.header.state == NeighbourState::Noarp => {
            // A port that has just been deleted has no name.
            Ok(name(entry.header.ifindex).map(|port| StaticEntry { mac, port }))
        }
        _ => Ok(None),
    }
}

fn index(name: &str) -> io::Result<u32> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}"));
    find_index(name)?.ok_or_else(missing)
}

/// Returns the index of an interface, or `None` if there is no such interface.
pub(super) fn find_index(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    // SAFETY: the name is NUL-terminated.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    Ok((index != 0).then_some(index))
}

fn name(index: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the function requires.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    let letters = || name.iter().map(|byte| *byte as u8 as char).take_while(|letter| *letter != '\0').collect();
    (!found.is_null()).then(letters)
}
