//! The DHCP server of a network with one client, whose address is fixed (RFC 2131, options of RFC 2132).

use std::net::Ipv4Addr;

use super::packet::{self, Datagram, TYPE_IPV4};
use machine::network::{GATEWAY_MAC, MacAddress, NetstackConfig};

pub const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Size of the part of a message before the cookie and the options.
const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The minimum message size, for the oldest clients (RFC 951).
const MINIMUM: usize = 300;
/// Lease time in seconds, as in EC2.
const LEASE: u32 = 3600;
const BROADCAST_FLAG: u8 = 0x80;

mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAME_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const END: u8 = 255;
}

mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const INFORM: u8 = 8;
}

struct Message<'a> {
    fixed: &'a [u8; FIXED],
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>()?;
        let mut options = rest.strip_prefix(&COOKIE)?;
        // Only requests over Ethernet are answered.
        if fixed[..3] != [1, 1, 6] {
            return None;
        }
        let mut message = Message { fixed, kind: 0, requested: None, server: None };
        while let Some((&code, rest)) = options.split_first() {
            match code {
                option::PAD => options = rest,
                option::END => break,
                _ => {
                    let (&length, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(length.into())?;
                    let address = || value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
                    match code {
                        option::MESSAGE_TYPE => message.kind = *value.first()?,
                        option::REQUESTED_ADDRESS => message.requested = address(),
                        option::SERVER => message.server = address(),
                        _ => {}
                    }
                    options = rest;
                }
            }
        }
        Some(message)
    }

    /// Returns the address that the client already uses (`ciaddr`), if any.
    fn own(&self) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = *self.fixed[12..].first_chunk()?;
        Some(Ipv4Addr::from(octets)).filter(|address| !address.is_unspecified())
    }
}

/// Returns the frame that replies to a message, if it needs a reply.
pub fn answer(guest: MacAddress, config: &NetstackConfig, bytes: &[u8]) -> Option<Vec<u8>> {
    let message = Message::parse(bytes)?;
    let is_other = |address: Option<Ipv4Addr>| address.is_some_and(|address| address != config.address);
    let kind = match message.kind {
        kind::DISCOVER => kind::OFFER,
        // The client accepted another server's offer, but there is no other server on this network.
        kind::REQUEST if message.server.is_some_and(|server| server != config.router) => return None,
        kind::REQUEST if is_other(message.requested.or(message.own())) => kind::NAK,
        kind::REQUEST | kind::INFORM => kind::ACK,
        // The guest's address is fixed, so declining or releasing it has no effect.
        _ => return None,
    };
    let reply = reply(config, &message, kind);
    // A client without an address may be unable to receive unicast packets (RFC 2131, section 4.1).
    let is_unicast = kind != kind::NAK && (message.own().is_some() || message.fixed[10] & BROADCAST_FLAG == 0);
    let (mac, address) =
        if is_unicast { (guest, config.address) } else { (MacAddress([0xff; 6]), Ipv4Addr::BROADCAST) };
    let datagram =
        Datagram { source: (config.router, SERVER_PORT), destination: (address, CLIENT_PORT), payload: &reply };
    Some(packet::frame(mac, GATEWAY_MAC, TYPE_IPV4, &datagram.packet()?))
}

fn reply(config: &NetstackConfig, message: &Message, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    bytes[..3].copy_from_slice(&[2, 1, 6]);
    // Transaction ID and flags.
    bytes[4..8].copy_from_slice(&message.fixed[4..8]);
    bytes[10..12].copy_from_slice(&message.fixed[10..12]);
    let mut options = COOKIE.to_vec();
    let mut put = |code: u8, value: &[u8]| {
        // A value that is too long for an option, such as a long host name, is omitted.
        if let Ok(length) = u8::try_from(value.len()) {
            options.extend([code, length]);
            options.extend(value);
        }
    };
    put(option::MESSAGE_TYPE, &[kind]);
    put(option::SERVER, &config.router.octets());
    if kind != kind::NAK {
        if message.kind != kind::INFORM {
            bytes[16..20].copy_from_slice(&config.address.octets());
            put(option::LEASE_TIME, &LEASE.to_be_bytes());
        }
        bytes[12..16].copy_from_slice(&message.fixed[12..16]);
        let mask = super::Cidr { address: config.address, prefix_length: config.prefix_length }.mask();
        put(option::SUBNET_MASK, &mask.to_be_bytes());
        put(option::ROUTER, &config.router.octets());
        let servers: Vec<u8> = config.dns.iter().flat_map(Ipv4Addr::octets).collect();
        if !servers.is_empty() {
            put(option::NAME_SERVERS, &servers);
        }
        put(option::HOST_NAME, config.hostname.as_bytes());
        put(option::DOMAIN_NAME, config.domain.as_bytes());
        put(option::INTERFACE_MTU, &config.mtu.to_be_bytes());
    }
    options.push(option::END);
    // The client's hardware address.
    bytes[28..44].copy_from_slice(&message.fixed[28..44]);
    bytes.extend(options);
    bytes.resize(bytes.len().max(MINIMUM), option::PAD);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::tests::{GUEST, config};
    use super::*;
    use crate::packet::{Ethernet, Ipv4};
    use proptest::prelude::*;

    fn message(kind: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&[9, 8, 7, 6]);
        bytes[28..34].copy_from_slice(&GUEST.0);
        [&bytes[..], &COOKIE, &[option::MESSAGE_TYPE, 1, kind], options, &[option::END]].concat()
    }

    fn answered(bytes: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
        let frame = answer(GUEST, &config(), bytes)?;
        let ethernet = Ethernet::parse(&frame).unwrap();
        let packet = Ipv4::parse(ethernet.payload).unwrap();
        let datagram = Datagram::parse(&packet).unwrap();
        assert_eq!((datagram.source, datagram.destination.1), ((config().router, 67), 68));
        Some((datagram.destination.0, datagram.payload.to_vec()))
    }

    fn value(reply: &[u8], code: u8) -> Option<Vec<u8>> {
        let mut options = &reply[FIXED + 4..];
        while options[0] != option::END {
            let length = usize::from(options[1]);
            if options[0] == code {
                return Some(options[2..2 + length].to_vec());
            }
            options = &options[2 + length..];
        }
        None
    }

    #[test]
    fn discover_and_request_return_configured_address() {
        for (sent, expected) in [(kind::DISCOVER, kind::OFFER), (kind::REQUEST, kind::ACK)] {
            let (to, reply) = answered(&message(sent, &[])).unwrap();
            assert_eq!(to, config().address);
            assert_eq!(reply[4..8], [9, 8, 7, 6]);
            assert_eq!(reply[16..20], config().address.octets());
            assert_eq!(value(&reply, option::MESSAGE_TYPE).unwrap(), [expected]);
            assert_eq!(value(&reply, option::SUBNET_MASK).unwrap(), [255, 255, 240, 0]);
            assert_eq!(value(&reply, option::ROUTER).unwrap(), config().router.octets());
            assert_eq!(value(&reply, option::NAME_SERVERS).unwrap(), config().dns[0].octets());
            assert_eq!(value(&reply, option::HOST_NAME).unwrap(), b"ip-172-31-0-4");
            assert_eq!(value(&reply, option::INTERFACE_MTU).unwrap(), 9001_u16.to_be_bytes());
        }
    }

    #[test]
    fn request_for_other_address_gets_broadcast_nak() {
        let (to, reply) = answered(&message(kind::REQUEST, &[option::REQUESTED_ADDRESS, 4, 10, 0, 0, 9])).unwrap();
        assert_eq!(to, Ipv4Addr::BROADCAST);
        assert_eq!(value(&reply, option::MESSAGE_TYPE).unwrap(), [kind::NAK]);
        assert_eq!(value(&reply, option::LEASE_TIME), None);
    }

    #[test]
    fn inform_gets_options_without_address_or_lease() {
        let (_, reply) = answered(&message(kind::INFORM, &[])).unwrap();
        assert_eq!((&reply[16..20], value(&reply, option::LEASE_TIME)), (&[0; 4][..], None));
    }

    #[test]
    fn other_server_and_invalid_messages_get_no_reply() {
        assert_eq!(answered(&message(kind::REQUEST, &[option::SERVER, 4, 10, 0, 0, 9])), None);
        assert_eq!(answered(&message(7, &[])), None);
        assert_eq!(answered(&message(kind::DISCOVER, &[option::SERVER, 200, 1])), None);
        assert_eq!(answered(&[]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(
            fixed in proptest::collection::vec(any::<u8>(), 0..300),
            options in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            answered(&fixed);
            answered(&message(kind::DISCOVER, &options));
        }
    }
}
