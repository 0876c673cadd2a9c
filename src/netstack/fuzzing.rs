//! Fuzz targets for the netstack: no frame from the guest or the network may crash it.
//!
//! A fuzzer cannot guess sequence numbers, so one kind of action sends a TCP segment with plausible numbers.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use smoltcp::wire::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, EthernetProtocol, IpProtocol};

use super::packet::Ipv4;
use super::{HEAD_LENGTH, Route, Services, WAITING, http, metadata, packet};
use machine::network::{
    Filter, FilterProtocol, FilterRule, GATEWAY_MAC, METADATA_ADDRESS, MacAddress, MetadataConfig, NetstackConfig,
};

pub const GUEST: MacAddress = MacAddress([6, 0, 0, 0, 0, 1]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 4);
/// Seed of the TCP sequence numbers.
const SEED: u64 = 1;
const ACK: u8 = 0x10;
const SYN: u8 = 2;

/// Returns a configuration. `bits` selects the filter, the MTU, the metadata service and required tokens.
pub fn config(bits: u8) -> NetstackConfig {
    let rule = |protocol| FilterRule { protocol, peers: vec!["0.0.0.0/0".parse().expect("all addresses are a range")] };
    let filter = Filter {
        ingress: vec![
            rule(FilterProtocol::Tcp { from: 22, to: 80 }),
            rule(FilterProtocol::Icmp { kind: Some(8), code: None }),
        ],
        egress: vec![rule(FilterProtocol::All)],
    };
    let tree = [
        ("ami-id", "ami-1"),
        ("placement/region", "us-east-1"),
        ("public-keys/0/openssh-key", "ssh-ed25519 AAAA mine"),
        ("tags/instance/Name", "web"),
    ];
    let metadata = MetadataConfig {
        enabled: true,
        tokens_required: bits & 2 != 0,
        hop_limit: 1,
        tree: tree.map(|(path, value)| (path.to_string(), value.to_string())).into(),
        identity_document: "{}".into(),
        user_data: Some("IyEvYmluL3NoCg==".into()),
    };
    NetstackConfig {
        address: ADDRESS,
        prefix_length: 20,
        router: Ipv4Addr::new(172, 31, 0, 1),
        dns: vec![Ipv4Addr::new(172, 31, 0, 2)],
        mtu: if bits & 4 == 0 { 9001 } else { 576 },
        hostname: "ip-172-31-0-4".into(),
        domain: "ec2.internal".into(),
        forwards: Vec::new(),
        filter: (bits & 1 != 0).then_some(filter),
        metadata: (bits & 8 == 0).then_some(metadata),
    }
}

/// Feeds the netstack frames from the guest and the network, reloads its configuration, and lets time pass.
pub fn frames(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let _ = acts(&mut input);
}

/// Feeds HTTP requests directly to the metadata service, without TCP.
pub fn http(data: &[u8]) {
    let (bits, mut requests) = data.split_first().map_or((0, data), |(bits, rest)| (*bits, rest));
    let Some(content) = config(bits & !8).metadata else { return };
    let mut metadata = metadata::Metadata::new(content);
    let now = Instant::now();
    loop {
        match http::parse(requests) {
            http::Parsed::HttpRequest(request, length) => {
                assert!(length > 0 && length <= requests.len(), "the request is longer than the input");
                let _ = metadata.hop_limit(&request);
                let answer = metadata.answer(&request, now);
                let _ = answer.encode(request.keeps_alive, request.method == "HEAD");
                requests = &requests[length..];
            }
            http::Parsed::Incomplete => return,
            http::Parsed::Bad(answer) => return drop(answer.encode(false, false)),
        }
    }
}

fn acts(input: &mut Unstructured) -> arbitrary::Result<()> {
    let Ok(services) = Services::with_seed(GUEST, config(input.arbitrary()?), SEED, None) else { return Ok(()) };
    let mut guest = Guest { services, now: Instant::now(), connections: HashMap::new() };
    while !input.is_empty() {
        match input.arbitrary::<u8>()? % 8 {
            0 => guest.send(bytes(input)?),
            1 => {
                let (protocol, to) = (input.arbitrary::<u8>()?, input.arbitrary()?);
                guest.send_ip(IpProtocol::from(protocol), to, bytes(input)?);
            }
            2 | 3 => guest.send_segment(input)?,
            4 => {
                let discover = bytes(input)?;
                let ports = [DHCP_CLIENT_PORT.to_be_bytes(), DHCP_SERVER_PORT.to_be_bytes()].concat();
                let length = (8 + discover.len() as u16).to_be_bytes();
                guest.send_ip(IpProtocol::Udp, 3, &[&ports[..], &length, &[0, 0], discover].concat());
            }
            5 => guest.now += Duration::from_millis(u64::from(input.arbitrary::<u16>()?) * 4),
            6 => {
                let frame = bytes(input)?;
                let _ = guest.services.to_guest(&frame[..frame.len().min(HEAD_LENGTH)], guest.now);
            }
            _ => guest.services.reload(config(input.arbitrary()?)),
        }
        guest.turn();
    }
    Ok(())
}

fn bytes<'a>(input: &mut Unstructured<'a>) -> arbitrary::Result<&'a [u8]> {
    let length = usize::from(input.arbitrary::<u16>()?).min(input.len());
    input.bytes(length)
}

struct Guest {
    services: Services,
    now: Instant,
    /// The guest's next sequence number and its acknowledgment number, by guest port.
    connections: HashMap<u16, (u32, u32)>,
}

impl Guest {
    fn send(&mut self, frame: &[u8]) {
        let head = &frame[..frame.len().min(HEAD_LENGTH)];
        match self.services.from_guest(head, self.now) {
            Route::Services => self.services.accept(frame, self.now),
            Route::Forward => self.services.refuse(head),
            Route::Drop => {}
        }
    }

    fn send_ip(&mut self, protocol: IpProtocol, to: u8, payload: &[u8]) {
        let destination = match to % 4 {
            0 => METADATA_ADDRESS,
            1 => self.services.config.router,
            2 => Ipv4Addr::new(172, 31, 9, to),
            _ => Ipv4Addr::BROADCAST,
        };
        let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol.into(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        header[12..16].copy_from_slice(&ADDRESS.octets());
        header[16..].copy_from_slice(&destination.octets());
        self.send(&packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &[&header[..], payload].concat()));
    }

    fn send_segment(&mut self, input: &mut Unstructured) -> arbitrary::Result<()> {
        let [to, port, flags, off, window]: [u8; 5] = input.arbitrary()?;
        let data = bytes(input)?;
        let port = 1024 + u16::from(port % 32);
        let (own, expected) = self.connections.entry(port).or_default();
        let number = own.wrapping_add_signed(i32::from(off.cast_signed()));
        let acknowledged = if flags & ACK == 0 { 0 } else { *expected };
        *own = own.wrapping_add(data.len() as u32 + u32::from(flags & 3 != 0));
        let mut header = [0; 20];
        header[..2].copy_from_slice(&port.to_be_bytes());
        header[2..4].copy_from_slice(&80_u16.to_be_bytes());
        header[4..8].copy_from_slice(&number.to_be_bytes());
        header[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        header[12..16].copy_from_slice(&[0x50, flags, window, 0]);
        self.send_ip(IpProtocol::Tcp, to, &[&header[..], data].concat());
        Ok(())
    }

    fn turn(&mut self) {
        self.services.poll(self.now);
        for _ in 0..4 * WAITING {
            let Some(frame) = self.services.next_frame() else { break };
            self.note(&frame);
        }
        assert!(self.services.frames.len() <= WAITING, "too many frames are queued");
        let _ = self.services.timeout(self.now);
    }

    fn note(&mut self, frame: &[u8]) {
        let ethernet = packet::ethernet(frame).expect("the netstack sent an invalid frame");
        let Some(packet) = Ipv4::parse(ethernet.payload()).filter(|packet| packet.protocol == IpProtocol::Tcp) else {
            return;
        };
        let Some(header) = packet.payload.first_chunk::<20>() else { return };
        let (port, number) = (u16::from_be_bytes([header[2], header[3]]), &header[4..8]);
        let number = u32::from_be_bytes([number[0], number[1], number[2], number[3]]);
        let data = packet.payload.len() as u32 - u32::from(header[12] >> 4) * 4;
        if let Some((_, expected)) = self.connections.get_mut(&port) {
            *expected = number.wrapping_add(data + u32::from(header[13] & (SYN | 1) != 0));
        }
    }
}
