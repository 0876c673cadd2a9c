//! Ports of the host that are forwarded to a guest, for example `8080:80`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Ec2Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A forwarded port. Written `[ADDRESS:]HOST:GUEST[/PROTOCOL]`; the protocol is `tcp` (the default) or `udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The address on which the host listens; loopback only.
    pub host: SocketAddrV4,
    pub guest_port: u16,
    pub protocol: Protocol,
}

impl FromStr for PublishedPort {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<PublishedPort, Ec2Error> {
        let refused = |rule: &str| Ec2Error::invalid_parameter("publish", text, rule);
        let (ports, protocol) = match text.rsplit_once('/') {
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some(_) => return Err(refused("the protocol must be tcp or udp.")),
            None => (text, Protocol::Tcp),
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, guest) = match parts.as_slice() {
            [host, guest] => (Some(Ipv4Addr::LOCALHOST), *host, *guest),
            [address, host, guest] => (address.parse().ok(), *host, *guest),
            _ => return Err(refused("it must be [ADDRESS:]HOST:GUEST, such as 8080:80.")),
        };
        let address = address.filter(Ipv4Addr::is_loopback);
        let address = address.ok_or_else(|| refused("the address must be a loopback address, 127.x.y.z."))?;
        let ports = port(host).zip(port(guest)).ok_or_else(|| refused("a port must be a number from 1 to 65535."))?;
        Ok(PublishedPort { host: SocketAddrV4::new(address, ports.0), guest_port: ports.1, protocol })
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == Protocol::Udp { "/udp" } else { "" };
        write!(f, "{}:{}{protocol}", self.host, self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn published_port_defaults_to_localhost_and_tcp() {
        let port: PublishedPort = "8080:80".parse().unwrap();
        assert_eq!(port.to_string(), "127.0.0.1:8080:80");
        assert_eq!(port.to_string().parse(), Ok(port));
        let port: PublishedPort = "127.0.0.2:53:5353/udp".parse().unwrap();
        assert_eq!(
            (port.protocol, port.guest_port, port.to_string().as_str()),
            (Protocol::Udp, 5353, "127.0.0.2:53:5353/udp")
        );
    }

    #[test]
    fn invalid_published_port_is_refused() {
        for text in
            ["", "80", "0:80", "80:0", "80:70000", "80:x", "0.0.0.0:80:80", "1:2:3:4", "80:80/sctp", "192.168.0.1:1:1"]
        {
            let error = text.parse::<PublishedPort>().expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue, "{text}");
        }
    }
}
