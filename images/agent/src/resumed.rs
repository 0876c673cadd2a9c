//! What a guest that was saved is told when it goes on, here or as another.
//!
//! The monitor resets all vsock connections of a restored guest. The agent has one that is for nothing else, to port
//! [`SENTINEL_PORT`] of the host: when that breaks, it reads at the I/O ports from [`RESUMED_PORT`] on, one byte a port, what
//! there is to know: a length, and so many bytes of a message in postcard's encoding. It has taken note of it when it writes
//! [`MARK_AGENT_READY`](crate::MARK_AGENT_READY) to the boot timer; until then nobody else reaches it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::network::Network;

/// The host's vsock port that takes connections which break when the guest is restored.
pub const SENTINEL_PORT: u32 = 1026;
/// The first of the ports.
pub const RESUMED_PORT: u16 = 0x700;
/// How many they are: the length and the longest message.
pub const RESUMED_PORTS: usize = 128;
/// In the agent's version, where it knows of all this.
pub const FEATURE: &str = "+resumes";

/// The message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The time, since 1970 in UTC.
    pub time: Duration,
    /// Bytes that no other guest gets, for the random number generator, if the kernel has not got them already.
    pub entropy: Option<[u8; 32]>,
    /// What it is to call itself now; nothing, if it is who it was.
    pub hostname: Option<String>,
    /// Whether the host has a seed for it.
    pub seed: bool,
    /// Its network interface, if it has one.
    pub network: Option<Network>,
    /// The instance that it is now; nothing, if it is for nobody. An agent that is older than this field passes over it.
    pub instance_id: Option<String>,
}

impl Resumed {
    /// The bytes at the ports; none, but for a length of 0, if the message is too long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let message = postcard::to_allocvec(self).unwrap_or_default();
        match u8::try_from(message.len()) {
            Ok(length) if message.len() < RESUMED_PORTS => [&[length][..], &message].concat(),
            _ => vec![0],
        }
    }

    /// The message in the bytes at the ports, if there is one.
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
