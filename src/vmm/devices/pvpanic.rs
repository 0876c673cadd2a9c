//! The pvpanic port, on which a guest's kernel reports a panic or a power-off (QEMU, `docs/specs/pvpanic`).
//!
//! Without ACPI, a PC has no other way to power itself off. The embedded kernel is patched to use this port.

use crate::bus::BusDevice;
use machine::end::{End, EndSender};

/// The ISA port that the specification assigns.
pub const PORT: u16 = 0x505;
/// Bits of the events, as in the specification.
const PANICKED: u8 = 1 << 0;
const SHUTDOWN: u8 = 1 << 2;

/// The pvpanic device. Reads return the supported events.
#[derive(Debug)]
pub struct Pvpanic {
    ends: EndSender,
}

impl Pvpanic {
    pub fn new(ends: EndSender) -> Pvpanic {
        Pvpanic { ends }
    }
}

impl BusDevice for Pvpanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data[0] = PANICKED | SHUTDOWN;
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data[0] & PANICKED != 0 {
            self.ends.send(End::Panic);
        } else if data[0] & SHUTDOWN != 0 {
            self.ends.send(End::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::end::end_channel;

    #[test]
    fn panic_and_power_off_are_distinguished() {
        for (event, end) in [(PANICKED, End::Panic), (SHUTDOWN, End::PowerOff), (PANICKED | SHUTDOWN, End::Panic)] {
            let (sender, receiver) = end_channel().unwrap();
            let mut device = Pvpanic::new(sender);
            device.write(0, &[0x80]);
            device.write(0, &[event]);
            assert_eq!(receiver.take(), Some(end));
        }
    }
}
