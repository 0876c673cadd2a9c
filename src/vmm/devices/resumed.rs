//! The ports on which a restored guest reads its new identity ([`wisp_agent::resumed`]). They read as zero in a booted
//! guest, and after the guest's agent has reported that it is ready.

use std::time::SystemTime;

use wisp_agent::resumed::Resumed;

use crate::bus::BusDevice;

#[derive(Debug, Default)]
pub struct ResumedPorts {
    message: Option<Resumed>,
    bytes: Vec<u8>,
}

impl ResumedPorts {
    /// Creates the device with the message for a restored guest. The time is added when the guest reads the message.
    pub fn new(message: Option<Resumed>) -> ResumedPorts {
        ResumedPorts { message, bytes: Vec::new() }
    }

    pub fn clear(&mut self) {
        *self = ResumedPorts::default();
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
    fn message_is_readable_until_cleared() {
        assert_eq!(read(&mut ResumedPorts::default()), None);
        let mut ports = ResumedPorts::new(Some(Resumed { entropy: Some([3; 32]), ..Resumed::default() }));
        let message = read(&mut ports).unwrap();
        assert_eq!(message.entropy, Some([3; 32]));
        assert!(message.time > std::time::Duration::from_secs(1_700_000_000));
        ports.clear();
        assert_eq!(read(&mut ports), None);
    }
}
