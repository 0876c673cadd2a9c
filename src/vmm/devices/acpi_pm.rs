//! ACPI power-management registers (ACPI Specification 6.5, section 4.8.3): PM1 events, which never occur, and PM1
//! control, through which a guest powers itself off.

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use machine::end::{End, EndSender};

/// The first port of the event block, which the control block follows.
pub const PORT: u16 = 0x600;
/// `PM1_EVT_LEN`: a status and an enable register of 2 bytes each.
pub const EVENT_LENGTH: u8 = 4;
/// `PM1_CNT_LEN`: one register of 2 bytes.
pub const CONTROL_LENGTH: u8 = 2;
pub const LENGTH: u64 = EVENT_LENGTH as u64 + CONTROL_LENGTH as u64;
/// The line of the system control interrupt, which is never raised.
pub const SCI: u8 = 9;
/// The value of `SLP_TYP` for S5, "soft off", as in the DSDT's `_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Offsets of the enable and control registers.
const ENABLE: u64 = 2;
const CONTROL: u64 = 4;
/// PM1 control: ACPI is enabled (always set, because there is no legacy mode), and the sleep type and command.
const SCI_EN: u8 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_EN: u16 = 1 << 13;

#[derive(Debug)]
pub struct AcpiPm {
    ends: EndSender,
    enable: [u8; 2],
    control: [u8; 2],
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcpiPmState {
    enable: [u8; 2],
    control: [u8; 2],
}

impl AcpiPm {
    pub fn new(ends: EndSender) -> AcpiPm {
        AcpiPm { ends, enable: [0; 2], control: [SCI_EN, 0] }
    }

    pub fn state(&self) -> AcpiPmState {
        AcpiPmState { enable: self.enable, control: self.control }
    }

    pub fn restore(&mut self, state: &AcpiPmState) {
        (self.enable, self.control) = (state.enable, state.control);
    }

    fn register(&mut self, offset: u64) -> Option<&mut u8> {
        match offset {
            ENABLE..CONTROL => self.enable.get_mut((offset - ENABLE) as usize),
            _ => self.control.get_mut(offset.checked_sub(CONTROL)? as usize),
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            // Events never occur, so the status register is always zero.
            *byte = self.register(at).map_or(0, |register| *register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(register) = self.register(at) {
                *register = *byte;
            }
        }
        let control = u16::from_le_bytes(self.control);
        if control & SLP_EN != 0 && (control >> SLP_TYP_SHIFT & 7) as u8 == SLEEP_TYPE_S5 {
            self.ends.send(End::PowerOff);
        }
        // SLP_EN is write-only, so it reads as zero. SCI_EN is always set.
        self.control[0] |= SCI_EN;
        self.control[1] &= !(SLP_EN >> 8) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::end::end_channel;

    #[test]
    fn sleep_type_five_powers_off_and_others_do_not() {
        let (sender, receiver) = end_channel().unwrap();
        let mut device = AcpiPm::new(sender);
        device.write(CONTROL, &(3_u16 << SLP_TYP_SHIFT | SLP_EN).to_le_bytes());
        assert_eq!(receiver.take(), None);
        device.write(CONTROL, &(u16::from(SLEEP_TYPE_S5) << SLP_TYP_SHIFT | SLP_EN).to_le_bytes());
        assert_eq!(receiver.take(), Some(End::PowerOff));
    }

    #[test]
    fn acpi_is_always_enabled_and_enable_bits_are_kept() {
        let mut device = AcpiPm::new(end_channel().unwrap().0);
        device.write(CONTROL, &[0, 0]);
        device.write(0, &[0xff, 0xff]);
        device.write(ENABLE, &[0x20, 0x01]);
        let mut all = [0; LENGTH as usize];
        device.read(0, &mut all);
        assert_eq!(all, [0, 0, 0x20, 1, 1, 0]);
    }
}
