//! A guest's netstack configuration: JSON in the instance's directory, which the VMM rereads after a change.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wisp_agent::network::Network;

/// Command that lets users other than root listen on ports from 22 up.
pub const ALLOW_LOW_PORTS: &str = "sudo sysctl net.ipv4.ip_unprivileged_port_start=22";

/// The MAC address of all peers. The guest's network is routed, so no frame contains an address of another device.
pub const GATEWAY_MAC: MacAddress = MacAddress([0x0a, 0x57, 0x49, 0x53, 0x50, 0x01]);
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A MAC address, written as `06:1f:2a:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

/// An address range in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cidr {
    pub address: Ipv4Addr,
    /// 0 to 32.
    pub prefix_length: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {what}")]
pub struct ParseError {
    given: String,
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetstackConfig {
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    pub router: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// The size of the largest IP packet in bytes.
    pub mtu: u16,
    /// For example, `ip-172-31-5-9`.
    pub hostname: String,
    /// For example, `ec2.internal`.
    pub domain: String,
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// `None` passes all packets.
    #[serde(default)]
    pub filter: Option<Filter>,
    /// `None` disables the service.
    #[serde(default)]
    pub metadata: Option<MetadataConfig>,
}

impl NetstackConfig {
    pub fn read(path: &Path) -> io::Result<NetstackConfig> {
        NetstackConfig::read_from(File::open(path)?)
    }

    pub fn read_from(mut file: File) -> io::Result<NetstackConfig> {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub fn network(&self, mac: MacAddress) -> Network {
        let NetstackConfig { address, prefix_length, router, ref dns, mtu, .. } = *self;
        Network { mac: mac.0, address, prefix_length, router, dns: dns.clone(), mtu }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    pub transport: Transport,
    pub host: SocketAddrV4,
    pub guest_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

/// A stateful packet filter: rules for new connections. Replies always pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    pub ingress: Vec<FilterRule>,
    pub egress: Vec<FilterRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilterRule {
    #[serde(flatten)]
    pub protocol: FilterProtocol,
    pub peers: Vec<Cidr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "kebab-case")]
pub enum FilterProtocol {
    All,
    Tcp {
        from: u16,
        to: u16,
    },
    Udp {
        from: u16,
        to: u16,
    },
    Icmp {
        /// `None` matches all types.
        kind: Option<u8>,
        /// `None` matches all codes.
        code: Option<u8>,
    },
    Other {
        /// Protocol number assigned by IANA.
        number: u8,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataConfig {
    /// False if the service refuses all requests (`HttpEndpoint`).
    pub enabled: bool,
    /// Requests require a token (`HttpTokens`).
    pub tokens_required: bool,
    /// The hop limit of responses to token requests, 1 to 64.
    pub hop_limit: u8,
    /// The values under `meta-data/`, by path, such as `placement/availability-zone`.
    pub tree: BTreeMap<String, String>,
    pub identity_document: String,
    /// Base64-encoded.
    pub user_data: Option<String>,
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<MacAddress, ParseError> {
        let digits = |pair: &str| if pair.len() == 2 { u8::from_str_radix(pair, 16).ok() } else { None };
        let bytes: Option<Vec<u8>> = text.split(':').map(digits).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(MacAddress).ok_or_else(|| ParseError { given: text.into(), what: "a MAC address" })
    }
}

impl Cidr {
    pub const fn host(address: Ipv4Addr) -> Cidr {
        Cidr { address, prefix_length: 32 }
    }

    pub const fn mask(self) -> u32 {
        // The 64-bit shift is valid even for a prefix of 0 bits.
        (u64::MAX << (32 - if self.prefix_length > 32 { 32 } else { self.prefix_length })) as u32
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.address.to_bits() ^ address.to_bits()) & self.mask() == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Cidr, ParseError> {
        let parts =
            text.split_once('/').and_then(|(address, length)| Some((address.parse().ok()?, length.parse().ok()?)));
        let cidr = parts.map(|(address, prefix_length)| Cidr { address, prefix_length });
        let sound = cidr.filter(|cidr| cidr.prefix_length <= 32 && cidr.address.to_bits() & !cidr.mask() == 0);
        sound.ok_or_else(|| ParseError { given: text.into(), what: "an address range, such as 10.0.0.0/8" })
    }
}

macro_rules! text {
    ($($kind:ty),*) => {$(
        impl From<$kind> for String {
            fn from(value: $kind) -> String {
                value.to_string()
            }
        }

        impl TryFrom<String> for $kind {
            type Error = ParseError;

            fn try_from(text: String) -> Result<$kind, ParseError> {
                text.parse()
            }
        }
    )*};
}
text!(MacAddress, Cidr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_invalid_text_is_refused() {
        assert_eq!("06:1f:2a:00:00:01".parse(), Ok(MacAddress([6, 0x1f, 0x2a, 0, 0, 1])));
        assert_eq!(GATEWAY_MAC.to_string().parse(), Ok(GATEWAY_MAC));
        for text in [
            "",
            "06:1f:2a:00:00",
            "06:1f:2a:00:00:01:02",
            "6:1f:2a:00:00:01",
            "0g:1f:2a:00:00:01",
            "+6:1f:2a:00:00:01:",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn cidr_contains_addresses_with_its_prefix() {
        let range: Cidr = "172.31.16.0/20".parse().unwrap();
        assert!(range.contains(Ipv4Addr::new(172, 31, 31, 255)));
        assert!(!range.contains(Ipv4Addr::new(172, 31, 32, 0)));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::BROADCAST));
        assert!(!Cidr::host(Ipv4Addr::LOCALHOST).contains(Ipv4Addr::UNSPECIFIED));
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/-1", "10.0.0/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    /// Checks membership bit by bit, and that only a range without bits after its prefix can be parsed.
    fn check_cidr(base: u32, prefix_length: u8, address: u32) {
        let bit = |value: u32, place: u8| value << place >> 31;
        let cidr = Cidr { address: base.into(), prefix_length };
        let is_inside = (0..prefix_length).all(|place| bit(base, place) == bit(address, place));
        assert_eq!(cidr.contains(address.into()), is_inside, "{cidr} {}", Ipv4Addr::from_bits(address));
        let is_first = (prefix_length..32).all(|place| bit(base, place) == 0);
        assert_eq!(cidr.to_string().parse().ok(), is_first.then_some(cidr), "{cidr}");
    }

    #[test]
    fn every_cidr_over_first_and_last_bits_matches_model() {
        // Two bits at each end of an address, so that short and long prefixes split the values.
        let values = (0..4_u32).flat_map(|high| (0..4).map(move |low| high << 30 | low));
        for base in values.clone() {
            for prefix_length in 0..=32 {
                values.clone().for_each(|address| check_cidr(base, prefix_length, address));
            }
        }
    }

    #[test]
    fn config_round_trips_through_json() {
        let peers = vec!["0.0.0.0/0".parse().unwrap()];
        let rule = |protocol| FilterRule { protocol, peers: peers.clone() };
        let protocols = [
            FilterProtocol::All,
            FilterProtocol::Tcp { from: 22, to: 22 },
            FilterProtocol::Icmp { kind: Some(8), code: None },
            FilterProtocol::Other { number: 50 },
        ];
        let config = NetstackConfig {
            address: Ipv4Addr::new(172, 31, 0, 10),
            prefix_length: 20,
            router: Ipv4Addr::new(172, 31, 0, 1),
            dns: vec![Ipv4Addr::new(172, 31, 0, 2)],
            mtu: 1500,
            hostname: "ip-172-31-0-10".into(),
            domain: "ec2.internal".into(),
            forwards: vec![Forward {
                transport: Transport::Tcp,
                host: "127.18.0.5:80".parse().unwrap(),
                guest_port: 80,
            }],
            filter: Some(Filter { ingress: protocols.map(rule).into(), egress: vec![] }),
            metadata: None,
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<NetstackConfig>(&text).unwrap(), config);
    }
}
