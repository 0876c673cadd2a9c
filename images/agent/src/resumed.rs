//! The message to a guest that was restored from a snapshot, as the same instance or as another.
//!
//! The VMM resets all vsock connections of a restored guest. The agent keeps a connection to port [`SENTINEL_PORT`] of
//! the host, only to detect that reset. When it breaks, the agent reads the I/O ports from [`RESUMED_PORT`] on, one
//! byte per port: a length, then a message of that length in postcard's encoding. The agent writes
//! [`MARK_AGENT_READY`](crate::MARK_AGENT_READY) to the boot timer when it has applied the message. Until then no
//! other connection reaches it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::network::Network;

/// The host's vsock port for connections that break when the guest is restored.
pub const SENTINEL_PORT: u32 = 1026;
/// The first of the message's I/O ports.
pub const RESUMED_PORT: u16 = 0x700;
/// The number of I/O ports: one for the length, the rest for the longest message.
pub const RESUMED_PORTS: usize = 128;
/// The feature in the agent's version that says it supports this message.
pub const FEATURE: &str = "+resumes";

/// The message to a restored guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The time since 1970, in UTC.
    pub time: Duration,
    /// Bytes unique to this guest for the random number generator, unless the kernel already has them.
    pub entropy: Option<[u8; 32]>,
    /// The new hostname, or `None` to keep the old one.
    pub hostname: Option<String>,
    /// True if the host has a seed for this guest.
    pub seed: bool,
    /// The network configuration, if the guest has an interface.
    pub network: Option<Network>,
    /// The current instance's identifier, or `None` if the guest belongs to no instance. Agents older than this field
    /// ignore it.
    pub instance_id: Option<String>,
}

impl Resumed {
    /// Returns the bytes for the ports. If the message is too long, they are only a length of 0.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let message = postcard::to_allocvec(self).unwrap_or_default();
        match u8::try_from(message.len()) {
            Ok(length) if message.len() < RESUMED_PORTS => [&[length][..], &message].concat(),
            _ => vec![0],
        }
    }

    /// Decodes the bytes read from the ports. Returns `None` if they hold no message.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first()?;
        let message = rest.get(..usize::from(*length)).filter(|message| !message.is_empty())?;
        postcard::from_bytes(message).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_back_and_nothing_else_is_one() {
        let resumed = Resumed {
            time: Duration::new(1_795_000_000, 5),
            entropy: Some([7; 32]),
            hostname: Some("i-01234567".into()),
            seed: true,
            network: Network::parse("06:00:00:00:00:01,172.31.0.4/20,172.31.0.1,9001,172.31.0.2"),
            instance_id: Some("i-0123456789abcdef0".into()),
        };
        let mut bytes = resumed.encode();
        assert_eq!(Resumed::decode(&bytes[..bytes.len() - 1]), None);
        bytes.resize(RESUMED_PORTS, 0);
        assert_eq!(Resumed::decode(&bytes), Some(resumed.clone()));
        assert_eq!(Resumed::decode(&[0; 8]), None);
        let long = Resumed { hostname: Some("x".repeat(200)), ..resumed };
        assert_eq!(Resumed::decode(&long.encode()), None);
    }
}
