//! Answers ARP requests (RFC 826). The guest reaches every other address through the gateway.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol};

use super::packet;
use machine::network::{GATEWAY_MAC, MacAddress};

/// Returns the reply to a guest's request, if any. The guest's check for duplicates of its own address `own` gets none.
pub fn answer(guest: MacAddress, own: Ipv4Addr, payload: &[u8]) -> Option<Vec<u8>> {
    let request = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } = request else {
        return None;
    };
    if operation != ArpOperation::Request || target_protocol_addr == own {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: EthernetAddress(guest.0),
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    Some(packet::frame(guest, GATEWAY_MAC, EthernetProtocol::Arp, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: MacAddress = MacAddress([6, 0, 0, 0, 0, 1]);
    const OWN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 4);

    fn request(target: [u8; 4]) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 1], &GUEST.0[..], &OWN.octets(), &[0; 6], &target].concat()
    }

    #[test]
    fn arp_request_for_other_address_returns_gateway_mac() {
        let frame = answer(GUEST, OWN, &request([8, 8, 8, 8])).unwrap();
        assert_eq!(frame[..6], GUEST.0);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 2]);
        assert_eq!(frame[22..28], GATEWAY_MAC.0);
        assert_eq!(frame[28..32], [8, 8, 8, 8]);
        assert_eq!(frame[38..], OWN.octets());
        assert!(answer(GUEST, OWN, &request(OWN.octets())).is_none());
        assert!(answer(GUEST, OWN, &request([8, 8, 8, 8])[..27]).is_none());
    }
}
