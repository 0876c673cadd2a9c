//! Builds and parses packets with smoltcp, as far as needed: frames, IPv4 (RFC 791), and ports. A packet may be
//! truncated after its headers, unlike for smoltcp's own checks.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IPV4_HEADER_LEN,
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket,
    UdpPacket, UdpRepr,
};

use machine::network::MacAddress;

const MAX_IPV4_HEADER: usize = 60;
const ICMP_HEADER: usize = 8;
/// The part of a TCP header up to and including its flags.
const UP_TO_TCP_FLAGS: usize = 14;
/// The two ports at the start of a TCP or UDP header.
const PORTS: usize = 4;

pub fn ethernet(frame: &[u8]) -> Option<EthernetFrame<&[u8]>> {
    EthernetFrame::new_checked(frame).ok()
}

pub fn frame(destination: MacAddress, source: MacAddress, ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let (src_addr, dst_addr) = (EthernetAddress(source.0), EthernetAddress(destination.0));
    let mut bytes = vec![0; ETHERNET_HEADER_LEN];
    EthernetRepr { src_addr, dst_addr, ethertype }.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes.extend(payload);
    bytes
}

/// An IPv4 header, and the available part of its payload.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: IpProtocol,
    pub identification: u16,
    /// Offset in bytes.
    pub fragment_offset: u16,
    pub has_more_fragments: bool,
    pub payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Parses a packet, which may be truncated after the header.
    pub fn parse(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        bytes.first_chunk::<IPV4_HEADER_LEN>()?;
        let packet = Ipv4Packet::new_unchecked(bytes);
        let (length, total) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
        if packet.version() != 4 || length < IPV4_HEADER_LEN || total < length {
            return None;
        }
        let payload = bytes.get(length..)?;
        Some(Ipv4 {
            source: packet.src_addr(),
            destination: packet.dst_addr(),
            protocol: packet.next_header(),
            identification: packet.ident(),
            fragment_offset: packet.frag_offset(),
            has_more_fragments: packet.more_frags(),
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
        if self.is_later_fragment() || self.protocol != IpProtocol::Tcp {
            return None;
        }
        let tcp = TcpPacket::new_unchecked(self.payload.first_chunk::<UP_TO_TCP_FLAGS>()?);
        Some(tcp.syn() && !tcp.ack())
    }

    pub fn ports(&self) -> Option<(u16, u16)> {
        if self.is_later_fragment() || !matches!(self.protocol, IpProtocol::Tcp | IpProtocol::Udp) {
            return None;
        }
        let packet = UdpPacket::new_unchecked(self.payload.first_chunk::<PORTS>()?);
        Some((packet.src_port(), packet.dst_port()))
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
        if packet.is_later_fragment() || packet.protocol != IpProtocol::Udp {
            return None;
        }
        let udp = UdpPacket::new_checked(packet.payload).ok()?;
        let (source, destination) = ((packet.source, udp.src_port()), (packet.destination, udp.dst_port()));
        Some(Datagram { source, destination, payload: udp.payload() })
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
    if packet.len() <= mtu || packet.len() < IPV4_HEADER_LEN {
        return vec![packet];
    }
    let (header, payload) = packet.split_at(IPV4_HEADER_LEN);
    let step = (mtu.saturating_sub(IPV4_HEADER_LEN) / 8).max(1) * 8;
    let pieces = payload.chunks(step).enumerate().map(|(index, piece)| {
        let mut bytes = [header, piece].concat();
        // The length and the offset fit: a packet has at most 65535 bytes.
        let (length, offset) = (bytes.len() as u16, (index * step) as u16);
        let mut fragment = Ipv4Packet::new_unchecked(&mut bytes[..]);
        fragment.set_total_len(length);
        fragment.set_ident(identification);
        fragment.clear_flags();
        fragment.set_more_frags((index + 1) * step < payload.len());
        fragment.set_frag_offset(offset);
        fragment.fill_checksum();
        bytes
    });
    pieces.collect()
}

/// Builds an ICMP "network unreachable" message (RFC 792) with the start of the undeliverable packet.
pub fn unreachable(router: Ipv4Addr, guest: Ipv4Addr, packet: &[u8]) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(MAX_IPV4_HEADER + 8)];
    let ip = Ipv4Repr {
        src_addr: router,
        dst_addr: guest,
        next_header: IpProtocol::Icmp,
        payload_len: ICMP_HEADER + quoted.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len() + ip.payload_len];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
    // smoltcp's `Icmpv4Repr` would quote a header without its identification and options.
    let mut message = Icmpv4Packet::new_unchecked(&mut bytes[ip.buffer_len()..]);
    message.set_msg_type(Icmpv4Message::DstUnreachable);
    message.set_msg_code(Icmpv4DstUnreachable::NetUnreachable.into());
    message.data_mut().copy_from_slice(quoted);
    message.fill_checksum();
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
        for length in 0..IPV4_HEADER_LEN {
            assert!(Ipv4::parse(&whole[..length]).is_none());
        }
        for length in IPV4_HEADER_LEN..whole.len() {
            assert!(Datagram::parse(&Ipv4::parse(&whole[..length]).unwrap()).is_none());
        }
        assert!(ethernet(&[0; 13]).is_none());
        let mut wrong = whole.clone();
        wrong[0] = 0x4f;
        assert!(Ipv4::parse(&wrong).is_none(), "a header longer than the packet");
    }
}
