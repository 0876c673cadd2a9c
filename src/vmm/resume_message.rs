//! The message to a restored guest, and to the first guest of a template after its snapshot. vsock clients can reach the
//! guest only after it has handled the message.

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
    generation: u64,
    entropy: [u8; 32],
}

impl ResumeMessage {
    pub fn of(config: &MachineConfig, link: Option<&NetstackConfig>) -> Result<ResumeMessage, Error> {
        let (mut number, mut entropy) = ([0; 8], [0; 32]);
        for bytes in [&mut number[..], &mut entropy] {
            getrandom(bytes, GetRandomFlags::empty())
                .map_err(|errno| Error::host("get random numbers")(errno.into()))?;
        }
        let path = config.vsock.as_ref().and_then(|vsock| vsock.seed.clone());
        let seed = match path {
            Some(path) => Seed::decode(&std::fs::read(&path).map_err(|source| Error::File { path, source })?),
            None => None,
        };
        let instance_id = seed.as_ref().map(|seed| seed.instance_id.clone());
        let hostname = seed.as_ref().and_then(|seed| seed.hostname.clone());
        // The message has the instance ID, host name and network. The guest reads the seed only if it has more.
        let has_more = seed.is_some_and(|seed| !seed.public_keys.is_empty() || seed.user_data.is_some());
        let network = config.net.as_ref().zip(link).map(|(net, link)| link.network(net.mac));
        let message = Resumed { hostname, seed: has_more, network, instance_id, ..Resumed::default() };
        Ok(ResumeMessage { message, release: new_eventfd()?, generation: u64::from_le_bytes(number), entropy })
    }

    /// Writes a new generation number and entropy to the memory of a guest that does not run. `address` is that of its
    /// generation record. If the guest's kernel does not support that, adds the entropy to the message.
    pub fn renew_generation(&mut self, memory: &GuestMemory, address: Option<u64>) {
        let is_taken = generation::renew(memory, address, self.generation, self.entropy);
        self.message.entropy = (!is_taken).then_some(self.entropy);
    }
}
