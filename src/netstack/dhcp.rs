//! The DHCP server of a network with one client, whose address is fixed (RFC 2131, options of RFC 2132).

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpHardware, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket,
    DhcpRepr, EthernetProtocol,
};

use super::packet::{self, Datagram};
use machine::network::{GATEWAY_MAC, MacAddress, NetstackConfig};

/// Size of the part of a message before the options.
const FIXED: usize = 240;
const COOKIE: u32 = 0x6382_5363;
/// The minimum message size, for the oldest clients (RFC 951).
const MINIMUM: usize = 300;
/// Lease time in seconds, as in EC2.
const LEASE: u32 = 3600;

mod option {
    pub const PAD: u8 = 0;
    pub const NAME_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const END: u8 = 255;
}

/// A client's message. `DhcpRepr` would refuse a client identifier of 7 bytes that is not a MAC address.
struct Message<'a> {
    packet: DhcpPacket<&'a [u8]>,
    kind: DhcpMessageType,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        // Only requests over Ethernet are answered.
        let is_ethernet = packet.hardware_type() == ArpHardware::Ethernet && packet.hardware_len() == 6;
        if packet.opcode() != DhcpOpCode::Request || !is_ethernet || packet.magic_number() != COOKIE {
            return None;
        }
        if !has_whole_options(bytes.get(FIXED..)?) {
            return None;
        }
        let value = |code| packet.options().filter(|option| option.kind == code).last().map(|option| option.data);
        let address = |code| value(code)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
        let kind = DhcpMessageType::from(*value(option::MESSAGE_TYPE)?.first()?);
        let (requested, server) = (address(option::REQUESTED_ADDRESS), address(option::SERVER));
        Some(Message { packet, kind, requested, server })
    }

    /// Returns the address that the client already uses (`ciaddr`), if any.
    fn own(&self) -> Option<Ipv4Addr> {
        Some(self.packet.client_ip()).filter(|address| !address.is_unspecified())
    }

    fn wants_broadcast(&self) -> bool {
        self.packet.flags().contains(DhcpFlags::BROADCAST)
    }
}

/// Returns false if the last option is truncated. smoltcp would ignore that option only.
fn has_whole_options(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [] | [option::END, ..] => return true,
            [option::PAD, ref rest @ ..] => rest,
            [_, length, ref rest @ ..] if rest.len() >= length.into() => &rest[length.into()..],
            _ => return false,
        }
    }
}

/// Returns the frame that replies to a message, if it needs a reply.
pub fn answer(guest: MacAddress, config: &NetstackConfig, bytes: &[u8]) -> Option<Vec<u8>> {
    use DhcpMessageType::{Ack, Discover, Inform, Nak, Offer, Request};
    let message = Message::parse(bytes)?;
    let is_other = |address: Option<Ipv4Addr>| address.is_some_and(|address| address != config.address);
    let kind = match message.kind {
        Discover => Offer,
        // The client accepted another server's offer, but there is no other server on this network.
        Request if message.server.is_some_and(|server| server != config.router) => return None,
        Request if is_other(message.requested.or(message.own())) => Nak,
        Request | Inform => Ack,
        // The guest's address is fixed, so declining or releasing it has no effect.
        _ => return None,
    };
    let reply = reply(config, &message, kind)?;
    // A client without an address may be unable to receive unicast packets (RFC 2131, section 4.1).
    let is_unicast = kind != Nak && (message.own().is_some() || !message.wants_broadcast());
    let (mac, address) =
        if is_unicast { (guest, config.address) } else { (MacAddress([0xff; 6]), Ipv4Addr::BROADCAST) };
    let (source, destination) = ((config.router, DHCP_SERVER_PORT), (address, DHCP_CLIENT_PORT));
    let datagram = Datagram { source, destination, payload: &reply };
    Some(packet::frame(mac, GATEWAY_MAC, EthernetProtocol::Ipv4, &datagram.packet()?))
}

fn reply(config: &NetstackConfig, message: &Message, kind: DhcpMessageType) -> Option<Vec<u8>> {
    let is_nak = kind == DhcpMessageType::Nak;
    let has_lease = !is_nak && message.kind != DhcpMessageType::Inform;
    // smoltcp's field holds three servers.
    let servers: Vec<u8> = config.dns.iter().flat_map(Ipv4Addr::octets).collect();
    let mtu = config.mtu.to_be_bytes();
    let mut options = vec![
        DhcpOption { kind: option::HOST_NAME, data: config.hostname.as_bytes() },
        DhcpOption { kind: option::DOMAIN_NAME, data: config.domain.as_bytes() },
        DhcpOption { kind: option::INTERFACE_MTU, data: &mtu },
    ];
    if !servers.is_empty() {
        options.insert(0, DhcpOption { kind: option::NAME_SERVERS, data: &servers });
    }
    // A value that is too long for an option, such as a long host name, is omitted.
    options.retain(|option| option.data.len() <= u8::MAX.into());
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: message.packet.transaction_id(),
        secs: 0,
        client_hardware_address: message.packet.client_hardware_address(),
        client_ip: if is_nak { Ipv4Addr::UNSPECIFIED } else { message.packet.client_ip() },
        your_ip: if has_lease { config.address } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: (!is_nak).then_some(config.router),
        subnet_mask: (!is_nak).then_some(config.subnet().netmask()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: message.wants_broadcast(),
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(config.router),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: has_lease.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if is_nak { &[] } else { &options },
    };
    // Zeros after the last option are padding.
    let mut bytes = vec![0; reply.buffer_len().max(MINIMUM)];
    reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{GUEST, config};
    use super::*;
    use crate::packet::Ipv4;
    use proptest::prelude::*;

    fn message(kind: DhcpMessageType, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&[9, 8, 7, 6]);
        bytes[28..34].copy_from_slice(&GUEST.0);
        bytes[FIXED - 4..].copy_from_slice(&COOKIE.to_be_bytes());
        [&bytes[..], &[option::MESSAGE_TYPE, 1, kind.into()], options, &[option::END]].concat()
    }

    fn answered(bytes: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
        let frame = answer(GUEST, &config(), bytes)?;
        let packet = Ipv4::parse(packet::ethernet(&frame).unwrap().payload()).unwrap();
        let datagram = Datagram::parse(&packet).unwrap();
        assert_eq!((datagram.source, datagram.destination.1), ((config().router, 67), 68));
        Some((datagram.destination.0, datagram.payload.to_vec()))
    }

    fn value(reply: &[u8], code: u8) -> Option<Vec<u8>> {
        let packet = DhcpPacket::new_checked(reply).unwrap();
        packet.options().find(|option| option.kind == code).map(|option| option.data.to_vec())
    }

    #[test]
    fn discover_and_request_return_configured_address() {
        for (sent, expected) in
            [(DhcpMessageType::Discover, DhcpMessageType::Offer), (DhcpMessageType::Request, DhcpMessageType::Ack)]
        {
            let (to, reply) = answered(&message(sent, &[])).unwrap();
            assert_eq!(to, config().address);
            assert_eq!(reply[4..8], [9, 8, 7, 6]);
            assert_eq!(reply[16..20], config().address.octets());
            assert_eq!(value(&reply, option::MESSAGE_TYPE).unwrap(), [u8::from(expected)]);
            assert_eq!(value(&reply, 1).unwrap(), [255, 255, 240, 0]);
            assert_eq!(value(&reply, 3).unwrap(), config().router.octets());
            assert_eq!(value(&reply, option::NAME_SERVERS).unwrap(), config().dns[0].octets());
            assert_eq!(value(&reply, option::HOST_NAME).unwrap(), b"ip-172-31-0-4");
            assert_eq!(value(&reply, option::INTERFACE_MTU).unwrap(), 9001_u16.to_be_bytes());
        }
    }

    #[test]
    fn request_for_other_address_gets_broadcast_nak() {
        let (to, reply) =
            answered(&message(DhcpMessageType::Request, &[option::REQUESTED_ADDRESS, 4, 10, 0, 0, 9])).unwrap();
        assert_eq!(to, Ipv4Addr::BROADCAST);
        assert_eq!(value(&reply, option::MESSAGE_TYPE).unwrap(), [u8::from(DhcpMessageType::Nak)]);
        assert_eq!(value(&reply, 51), None);
    }

    #[test]
    fn inform_gets_options_without_address_or_lease() {
        let (_, reply) = answered(&message(DhcpMessageType::Inform, &[])).unwrap();
        assert_eq!((&reply[16..20], value(&reply, 51)), (&[0; 4][..], None));
    }

    #[test]
    fn client_identifier_may_be_text() {
        assert!(answered(&message(DhcpMessageType::Discover, b"\x3d\x07machine")).is_some());
    }

    #[test]
    fn client_without_address_can_ask_for_broadcast() {
        let mut discover = message(DhcpMessageType::Discover, &[]);
        discover[10] = 0x80;
        assert_eq!(answered(&discover).unwrap().0, Ipv4Addr::BROADCAST);
        discover[12..16].copy_from_slice(&config().address.octets());
        assert_eq!(answered(&discover).unwrap().0, config().address);
    }

    #[test]
    fn other_server_and_invalid_messages_get_no_reply() {
        assert_eq!(answered(&message(DhcpMessageType::Request, &[option::SERVER, 4, 10, 0, 0, 9])), None);
        assert_eq!(answered(&message(DhcpMessageType::Release, &[])), None);
        assert_eq!(answered(&message(DhcpMessageType::Discover, &[option::SERVER, 200, 1])), None);
        assert_eq!(answered(&[]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(
            fixed in proptest::collection::vec(any::<u8>(), 0..300),
            options in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            answered(&fixed);
            answered(&message(DhcpMessageType::Discover, &options));
        }
    }
}
