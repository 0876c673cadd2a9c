//! Answers ARP requests (RFC 826). The guest reaches every other address through the gateway.

use std::net::Ipv4Addr;

use super::packet::{self, TYPE_ARP};
use machine::network::{GATEWAY_MAC, MacAddress};

/// The start of a message about Ethernet and IPv4, with addresses of 6 and 4 bytes.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const LENGTH: usize = 28;

/// Returns the reply to a guest's request, if any. The guest's check for duplicates of its own address `own` gets none.
pub fn answer(guest: MacAddress, own: Ipv4Addr, payload: &[u8]) -> Option<Vec<u8>> {
    let message = payload.first_chunk::<LENGTH>()?;
    let target: [u8; 4] = *message[24..].first_chunk()?;
    if message[..6] != KIND || message[6..8] != REQUEST || Ipv4Addr::from(target) == own {
        return None;
    }
    let answer = [&KIND[..], &REPLY, &GATEWAY_MAC.0, &target, &guest.0, &message[14..18]].concat();
    Some(packet::frame(guest, GATEWAY_MAC, TYPE_ARP, &answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: MacAddress = MacAddress([6, 0, 0, 0, 0, 1]);
    const OWN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 4);

    fn request(target: [u8; 4]) -> Vec<u8> {
        [&KIND[..], &REQUEST, &GUEST.0, &OWN.octets(), &[0; 6], &target].concat()
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
