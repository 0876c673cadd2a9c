//! Network configuration of the guest: from the kernel's command line at boot, and from the VMM after a restore.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

const OPTION: &str = "wisp.network=";

/// Addresses of the interface. The text form is `MAC,ADDRESS/PREFIX,ROUTER,MTU`, then a comma before each name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    pub router: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// Size of the largest IP packet in bytes.
    pub mtu: u16,
}

impl Network {
    #[must_use]
    pub fn to_option(&self) -> String {
        let mac: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut text =
            format!("{OPTION}{},{}/{},{},{}", mac.join(":"), self.address, self.prefix_length, self.router, self.mtu);
        for server in &self.dns {
            text.push_str(&format!(",{server}"));
        }
        text
    }

    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(',');
        let digits = |pair: &str| if pair.len() == 2 { u8::from_str_radix(pair, 16).ok() } else { None };
        let mac: Vec<u8> = parts.next()?.split(':').map(digits).collect::<Option<_>>()?;
        let (address, prefix_length) = parts.next()?.split_once('/')?;
        let prefix_length = prefix_length.parse().ok().filter(|length| *length <= 32)?;
        let router = parts.next()?.parse().ok()?;
        let mtu = parts.next()?.parse().ok()?;
        let dns = parts.map(|server| server.parse().ok()).collect::<Option<_>>()?;
        let address = address.parse().ok()?;
        Some(Self { mac: mac.try_into().ok()?, address, prefix_length, router, dns, mtu })
    }

    #[must_use]
    pub fn netmask(&self) -> Ipv4Addr {
        let zeroes = u32::from(32 - self.prefix_length.min(32));
        Ipv4Addr::from_bits(u32::MAX.checked_shl(zeroes).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_round_trips_and_invalid_values_are_refused() {
        let network = Network {
            mac: [6, 0x1f, 0, 0, 0, 1],
            address: Ipv4Addr::new(172, 31, 0, 4),
            prefix_length: 20,
            router: Ipv4Addr::new(172, 31, 0, 1),
            dns: vec![Ipv4Addr::new(172, 31, 0, 2), Ipv4Addr::new(9, 9, 9, 9)],
            mtu: 9001,
        };
        let option = network.to_option();
        assert_eq!(option, "wisp.network=06:1f:00:00:00:01,172.31.0.4/20,172.31.0.1,9001,172.31.0.2,9.9.9.9");
        let value = option.strip_prefix(OPTION).unwrap();
        assert_eq!(Network::parse(value), Some(network.clone()));
        let without = Network { dns: vec![], ..network.clone() };
        assert_eq!(Network::parse(without.to_option().strip_prefix(OPTION).unwrap()), Some(without));
        for cut in 0..value.len() - "9001,172.31.0.2,9.9.9.9".len() {
            assert_eq!(Network::parse(&value[..cut]), None, "{}", &value[..cut]);
        }
        assert_eq!(Network::parse(&value.replace("/20", "/33")), None);
        assert_eq!(network.netmask(), Ipv4Addr::new(255, 255, 240, 0));
        assert_eq!(Network { prefix_length: 0, ..network }.netmask(), Ipv4Addr::UNSPECIFIED);
    }
}
