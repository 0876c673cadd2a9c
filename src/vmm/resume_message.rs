//! The message to a restored guest. vsock clients can reach the guest only after it has handled the message.

use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::EventFd;
use wisp_agent::resumed::Resumed;
use wisp_agent::seed::Seed;

use super::devices::generation;
use super::error::Error;
use super::eventfd::new_eventfd;
use super::memory::GuestMemory;
use machine::config::MachineConfig;
use netstack::NetstackConfig;

#[derive(Debug)]
pub(super) struct ResumeMessage {
    pub message: Resumed,
    /// Notified when the guest has handled the message.
    pub release: EventFd,
}

impl ResumeMessage {
    /// Prepares the message, and writes a new generation number and entropy to guest memory. If the guest's kernel does
    /// not support that, the message contains the entropy.
    pub fn of(
        config: &MachineConfig,
        memory: &GuestMemory,
        generation: Option<u64>,
        link: Option<&NetstackConfig>,
    ) -> Result<ResumeMessage, Error> {
        let (mut number, mut entropy) = ([0; 8], [0; 32]);
        for bytes in [&mut number[..], &mut entropy] {
            getrandom(bytes, GetRandomFlags::empty())
                .map_err(|errno| Error::host("get random numbers")(errno.into()))?;
        }
        let is_taken = generation::renew(memory, generation, u64::from_le_bytes(number), entropy);
        let path = config.vsock.as_ref().and_then(|vsock| vsock.seed.clone());
        let seed = match path {
            Some(path) => Seed::decode(&std::fs::read(&path).map_err(|source| Error::File { path, source })?),
            None => None,
        };
        let instance_id = seed.as_ref().map(|seed| seed.instance_id.clone());
        let hostname = seed.as_ref().and_then(|seed| seed.hostname.clone());
        // The message has the instance ID, host name and network. The guest reads the seed only if it has more.
        let has_more = seed.is_some_and(|seed| !seed.public_keys.is_empty() || seed.user_data.is_some());
        let entropy = (!is_taken).then_some(entropy);
        let network = config.net.as_ref().zip(link).map(|(net, link)| link.network(net.mac));
        let message = Resumed { entropy, hostname, seed: has_more, network, instance_id, ..Resumed::default() };
        Ok(ResumeMessage { message, release: new_eventfd()? })
    }
}
