//! The ports on which a restored guest reads its new identity ([`wisp_agent::resumed`]). They read as zero in a booted
//! guest, and after the guest's agent has reported that it is ready.

use std::time::SystemTime;

use vmm_sys_util::eventfd::EventFd;
use wisp_agent::resumed::Resumed;

use crate::bus::BusDevice;

#[derive(Debug, Default)]
pub struct ResumedPorts {
    message: Option<Resumed>,
    bytes: Vec<u8>,
    /// Notified when the guest has applied the message.
    release: Option<EventFd>,
}

impl ResumedPorts {
    /// Offers a message to the guest. The time is added when the guest reads it.
    pub fn offer(&mut self, message: Resumed, release: EventFd) {
        *self = ResumedPorts { message: Some(message), bytes: Vec::new(), release: Some(release) };
    }

    /// Removes the message, which the guest has applied, and notifies `release`.
    pub fn complete(&mut self) {
        if let Some(release) = std::mem::take(self).release {
            // Cannot fail: the counter is written once.
            let _ = release.write(1);
        }
    }
}

impl BusDevice for ResumedPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(message) = &mut self.message
        {
            message.time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.bytes = message.encode();
        }
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset as usize + index).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ports: &mut ResumedPorts) -> Option<Resumed> {
        let mut bytes = [0; wisp_agent::resumed::RESUMED_PORTS];
        bytes.iter_mut().enumerate().for_each(|(port, byte)| ports.read(port as u64, std::slice::from_mut(byte)));
        Resumed::decode(&bytes)
    }

    #[test]
    fn message_is_readable_until_completed() {
        assert_eq!(read(&mut ResumedPorts::default()), None);
        let (mut ports, release) = (ResumedPorts::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let offered = Resumed { entropy: Some([3; 32]), ..Resumed::default() };
        ports.offer(offered, release.try_clone().unwrap());
        let message = read(&mut ports).unwrap();
        assert_eq!(message.entropy, Some([3; 32]));
        assert!(message.time > std::time::Duration::from_secs(1_700_000_000));
        assert!(release.read().is_err());
        ports.complete();
        assert_eq!(read(&mut ports), None);
        assert_eq!(release.read().unwrap(), 1);
        ports.complete();
        assert!(release.read().is_err());
    }
}
