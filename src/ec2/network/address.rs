//! Private addresses and their DNS names.

use std::net::Ipv4Addr;

use crate::InstanceId;

/// Returns a host name such as `ip-172-31-0-4`.
pub fn private_host_name(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

/// Returns a DNS name such as `ip-172-31-0-4.ec2.internal`.
pub fn private_dns_name(address: Ipv4Addr) -> String {
    format!("{}.{}", private_host_name(address), super::DOMAIN)
}

/// Returns a locally administered MAC address. It is derived from the instance ID, so it never changes.
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
    fn dns_name_and_mac_address_are_derived() {
        assert_eq!(private_dns_name(Ipv4Addr::new(172, 31, 0, 4)), "ip-172-31-0-4.ec2.internal");
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        assert_eq!(mac_address(id), [0x06, 0x78, 0x9a, 0xbc, 0xde, 0xf0]);
    }
}
