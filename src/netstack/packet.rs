//! Parses frames as far as needed: Ethernet II, IPv4 (RFC 791), and ports. Rejects truncated headers.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr};

use machine::network::MacAddress;

/// Header sizes in bytes; for IPv4, the minimum.
pub const ETHERNET: usize = 14;
pub const IPV4: usize = 20;
const MAX_IPV4_HEADER: usize = 60;
/// EtherTypes of IPv4 and ARP.
pub const TYPE_IPV4: u16 = 0x0800;
pub const TYPE_ARP: u16 = 0x0806;
/// IP protocol numbers.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// The flag "more fragments", which shares a field with the fragment offset.
const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset of the flags in a TCP header, and two flags.
const TCP_FLAGS: usize = 13;
const SYN: u8 = 2;
const ACK: u8 = 0x10;

#[derive(Debug, Clone, Copy)]
pub struct Ethernet<'a> {
    pub destination: MacAddress,
    pub source: MacAddress,
    pub kind: u16,
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    pub fn parse(frame: &'a [u8]) -> Option<Ethernet<'a>> {
        let (header, payload) = frame.split_first_chunk::<ETHERNET>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, k0, k1] = *header;
        Some(Ethernet {
            destination: MacAddress([d0, d1, d2, d3, d4, d5]),
            source: MacAddress([s0, s1, s2, s3, s4, s5]),
            kind: u16::from_be_bytes([k0, k1]),
            payload,
        })
    }
}

pub fn frame(destination: MacAddress, source: MacAddress, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 header, and the available part of its payload.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub identification: u16,
    /// Offset in units of 8 bytes.
    pub fragment_offset: u16,
    pub has_more_fragments: bool,
    pub payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Parses a packet, which may be truncated after the header.
    pub fn parse(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        let header = bytes.first_chunk::<IPV4>()?;
        let length = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || length < IPV4 || total < length {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let payload = bytes.get(length..)?;
        Some(Ipv4 {
            source: address(12),
            destination: address(16),
            protocol: header[9],
            identification: u16::from_be_bytes([header[4], header[5]]),
            fragment_offset: fragment & 0x1fff,
            has_more_fragments: fragment & MORE_FRAGMENTS != 0,
            // An Ethernet frame may be padded after the packet.
            payload: &payload[..payload.len().min(total - length)],
        })
    }

    /// Returns true for a fragment other than the first, which has no ports.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment_offset != 0
    }

    pub fn is_fragment(&self) -> bool {
        self.is_later_fragment() || self.has_more_fragments
    }

    /// Returns true if this starts a TCP connection (SYN without ACK); `None` if it is not TCP or too short.
    pub fn begins_connection(&self) -> Option<bool> {
        if self.is_later_fragment() || self.protocol != TCP {
            return None;
        }
        self.payload.get(TCP_FLAGS).map(|flags| flags & (SYN | ACK) == SYN)
    }

    pub fn ports(&self) -> Option<(u16, u16)> {
        if self.is_later_fragment() || !matches!(self.protocol, TCP | UDP) {
            return None;
        }
        let [a, b, c, d] = *self.payload.first_chunk()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    pub fn parse(packet: &Ipv4<'a>) -> Option<Datagram<'a>> {
        let (source, destination) = packet.ports().filter(|_| packet.protocol == UDP)?;
        let length = usize::from(u16::from_be_bytes([*packet.payload.get(4)?, *packet.payload.get(5)?]));
        let payload = packet.payload.get(8..length)?;
        Some(Datagram { source: (packet.source, source), destination: (packet.destination, destination), payload })
    }

    /// Builds an IPv4 packet with the datagram. Returns `None` if the payload is too long for it.
    pub fn packet(&self) -> Option<Vec<u8>> {
        let udp = UdpRepr { src_port: self.source.1, dst_port: self.destination.1 };
        let length = udp.header_len() + self.payload.len();
        let ip = Ipv4Repr {
            src_addr: self.source.0,
            dst_addr: self.destination.0,
            next_header: IpProtocol::Udp,
            payload_len: length,
            hop_limit: 64,
        };
        let total = ip.buffer_len() + length;
        if total > usize::from(u16::MAX) {
            return None;
        }
        let mut bytes = vec![0; total];
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &checksums);
        udp.emit(
            &mut UdpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]),
            &IpAddress::Ipv4(self.source.0),
            &IpAddress::Ipv4(self.destination.0),
            self.payload.len(),
            |place| place.copy_from_slice(self.payload),
            &checksums,
        );
        Some(bytes)
    }
}

/// Splits a locally generated packet into fragments if it exceeds `mtu` (RFC 791, section 3.2).
pub fn fragments(packet: Vec<u8>, mtu: usize, identification: u16) -> Vec<Vec<u8>> {
    if packet.len() <= mtu || packet.len() < IPV4 {
        return vec![packet];
    }
    let (header, payload) = packet.split_at(IPV4);
    let step = (mtu.saturating_sub(IPV4) / 8).max(1) * 8;
    let pieces = payload.chunks(step).enumerate().map(|(index, piece)| {
        let mut bytes = [header, piece].concat();
        let is_last = (index + 1) * step >= payload.len();
        // The offset fits: a packet has at most 65535 bytes.
        let offset = (index * step / 8) as u16 | if is_last { 0 } else { MORE_FRAGMENTS };
        bytes[2..4].copy_from_slice(&((IPV4 + piece.len()) as u16).to_be_bytes());
        bytes[4..6].copy_from_slice(&identification.to_be_bytes());
        bytes[6..8].copy_from_slice(&offset.to_be_bytes());
        Ipv4Packet::new_unchecked(&mut bytes[..]).fill_checksum();
        bytes
    });
    pieces.collect()
}

/// Builds an ICMP "network unreachable" message (RFC 792: type 3, code 0) with the start of the undeliverable packet.
pub fn unreachable(router: Ipv4Addr, guest: Ipv4Addr, packet: &[u8]) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(MAX_IPV4_HEADER + 8)];
    let mut message = [&[3, 0, 0, 0, 0, 0, 0, 0][..], quoted].concat();
    Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
    let ip = Ipv4Repr {
        src_addr: router,
        dst_addr: guest,
        next_header: IpProtocol::Icmp,
        payload_len: message.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
    bytes.extend(message);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_round_trips() {
        let source = (Ipv4Addr::new(10, 0, 0, 1), 53);
        let destination = (Ipv4Addr::new(10, 0, 0, 2), 4000);
        let sent = Datagram { source, destination, payload: b"abc" };
        let bytes = [sent.packet().unwrap(), vec![0; 20]].concat();
        let packet = Ipv4::parse(&bytes).unwrap();
        let datagram = Datagram::parse(&packet).unwrap();
        assert_eq!((datagram.source, datagram.destination, datagram.payload), (source, destination, &b"abc"[..]));
        assert!(Datagram { payload: &[0; 65508], ..sent }.packet().is_none());
    }

    #[test]
    fn truncated_packet_is_refused() {
        let whole =
            Datagram { source: (Ipv4Addr::LOCALHOST, 1), destination: (Ipv4Addr::LOCALHOST, 2), payload: &[] }.packet();
        let whole = whole.unwrap();
        for length in 0..IPV4 {
            assert!(Ipv4::parse(&whole[..length]).is_none());
        }
        for length in IPV4..whole.len() {
            assert!(Datagram::parse(&Ipv4::parse(&whole[..length]).unwrap()).is_none());
        }
        assert!(Ethernet::parse(&[0; 13]).is_none());
        let mut wrong = whole.clone();
        wrong[0] = 0x4f;
        assert!(Ipv4::parse(&wrong).is_none(), "a header longer than the packet");
    }
}
