//! Message to a guest that was restored from a snapshot, as the same instance or as a different one.
//!
//! The agent keeps a connection to the host's vsock port [`SENTINEL_PORT`], only to detect a restore: the VMM then
//! resets all connections. Then the agent reads the I/O ports from [`RESUMED_PORT`] on, one byte per port: a length,
//! then a message of that length in postcard's encoding. After it has applied the message, the agent writes
//! [`MARK_AGENT_READY`](crate::MARK_AGENT_READY) to the boot timer. Until then no other connection reaches it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Vsock port of the host for connections that break when the guest is restored.
pub const SENTINEL_PORT: u32 = 1026;
/// First I/O port of the message.
pub const RESUMED_PORT: u16 = 0x700;
/// Number of I/O ports: one for the length, the rest for the longest message.
pub const RESUMED_PORTS: usize = 128;
/// Suffix of the agent's version that announces support for this message.
pub const FEATURE: &str = "+resumes";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Current time, as the time since 1970 in UTC.
    pub time: Duration,
    /// Bytes unique to this guest for the random number generator. `None` if the kernel already has some.
    pub entropy: Option<[u8; 32]>,
    /// `None` to keep the old host name.
    pub hostname: Option<String>,
    /// True if the host has a seed for this guest.
    pub seed: bool,
    pub network: Option<Network>,
    /// `None` if the guest does not belong to an instance. Agents older than this field ignore it.
    pub instance_id: Option<String>,
}

impl Resumed {
    /// Returns the bytes for the ports, or only a length of 0 if the message is too long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let message = postcard::to_allocvec(self).unwrap_or_default();
        match u8::try_from(message.len()) {
            Ok(length) if message.len() < RESUMED_PORTS => [&[length][..], &message].concat(),
            _ => vec![0],
        }
    }

    /// Returns `None` if the bytes from the ports are not a message.
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
    fn message_round_trips_and_invalid_bytes_are_refused() {
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
