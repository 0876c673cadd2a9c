//! Private addresses and their names.

use std::net::Ipv4Addr;

use super::Ipv4Range;
use crate::ec2::InstanceId;

/// The default VPC.
pub const DEFAULT_VPC: Ipv4Range = Ipv4Range { base: Ipv4Addr::new(172, 31, 0, 0), prefix_length: 16 };

/// The first of the default VPC's subnets: EC2 has one of this size in each zone.
pub const DEFAULT_SUBNET: Subnet = Subnet { base: Ipv4Addr::new(172, 31, 0, 0), prefix_length: 20 };

/// A range of addresses of which EC2 keeps the first four and the last (Amazon VPC User Guide, "Subnet CIDR blocks").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The first address.
    pub base: Ipv4Addr,
    /// Bits that all have in common.
    pub prefix_length: u8,
}

impl Subnet {
    /// The router's address: the first behind the base.
    pub fn router(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The name server's: the second behind the VPC's base, which is this subnet's too.
    pub fn name_server(self) -> Ipv4Addr {
        self.at(2)
    }

    /// The addresses that instances can have, in their order.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let size = 1_u32 << (32 - u32::from(self.prefix_length.clamp(16, 28)));
        (4..size - 1).map(move |number| self.at(number))
    }

    fn at(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().wrapping_add(number))
    }
}

/// What a guest with this address calls itself: `ip-172-31-0-4`.
pub fn private_host_name(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

/// Its name in its region: `ip-172-31-0-4.ec2.internal`.
pub fn private_dns_name(address: Ipv4Addr) -> String {
    format!("{}.{}", private_host_name(address), super::DOMAIN)
}

/// The Ethernet address of an instance's interface: a locally administered one, by the instance's identifier, so that it is
/// the same for life.
pub fn mac_address(instance: InstanceId) -> [u8; 6] {
    let mut bytes = [0x06, 0, 0, 0, 0, 0];
    let digits = instance.to_string();
    let last = digits.get(digits.len().saturating_sub(10)..).unwrap_or_default();
    for (byte, pair) in bytes[1..].iter_mut().zip(last.as_bytes().chunks(2)) {
        *byte = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_four_addresses_and_the_last_are_kept() {
        let addresses: Vec<Ipv4Addr> = DEFAULT_SUBNET.addresses().collect();
        assert_eq!(addresses.len(), 4096 - 5);
        assert_eq!(addresses[0], Ipv4Addr::new(172, 31, 0, 4));
        assert_eq!(addresses.last(), Some(&Ipv4Addr::new(172, 31, 15, 254)));
        assert_eq!(DEFAULT_SUBNET.router(), Ipv4Addr::new(172, 31, 0, 1));
        assert_eq!(DEFAULT_SUBNET.name_server(), Ipv4Addr::new(172, 31, 0, 2));
    }

    #[test]
    fn names_and_ethernet_addresses_are_by_address_and_identifier() {
        assert_eq!(private_dns_name(Ipv4Addr::new(172, 31, 0, 4)), "ip-172-31-0-4.ec2.internal");
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        assert_eq!(mac_address(id), [0x06, 0x78, 0x9a, 0xbc, 0xde, 0xf0]);
    }
}
