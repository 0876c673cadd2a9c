//! The i8042 keyboard controller, without a keyboard. Guests reboot through its reset line, and the VMM uses it to
//! press Ctrl-Alt-Del.
//!
//! It implements what Linux's driver needs to detect it, start its first port and read scan codes (set 1, translated).
//! Source: IBM PC/AT technical reference, "Keyboard Controller"; the driver's command names.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use machine::end::{End, EndSender};

/// The first port. Data is at offset 0, status and commands are at offset 4.
pub const PORT: u16 = 0x60;
pub const COMMAND_OFFSET: u16 = 4;
/// The number of ports, including the unused ones between the data port and the command port.
pub const LENGTH: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = COMMAND_OFFSET as u64;

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_KEYLOCK: u8 = 0x10;
/// Bits of the controller's command byte.
const CONTROL_KEYBOARD_INTERRUPT: u8 = 0x01;
const CONTROL_SYSTEM: u8 = 0x04;
const CONTROL_KEYBOARD_DISABLED: u8 = 0x10;
const CONTROL_TRANSLATE: u8 = 0x40;

const COMMAND_READ_CONTROL: u8 = 0x20;
const COMMAND_WRITE_CONTROL: u8 = 0x60;
const COMMAND_DISABLE_AUX: u8 = 0xa7;
const COMMAND_TEST_AUX: u8 = 0xa9;
const COMMAND_SELF_TEST: u8 = 0xaa;
const COMMAND_TEST_KEYBOARD: u8 = 0xab;
const COMMAND_DISABLE_KEYBOARD: u8 = 0xad;
const COMMAND_ENABLE_KEYBOARD: u8 = 0xae;
const COMMAND_READ_OUTPUT_PORT: u8 = 0xd0;
const COMMAND_WRITE_OUTPUT_PORT: u8 = 0xd1;
/// The command that pulses only the reset line.
pub const RESET_COMMAND: u8 = 0xfe;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_PASSED: u8 = 0x00;
const AUX_TEST_FAILED: u8 = 0xff;

const KEYBOARD_ACK: u8 = 0xfa;
const KEYBOARD_SELF_TEST_PASSED: u8 = 0xaa;
const KEYBOARD_RESET: u8 = 0xff;
const KEYBOARD_IDENTIFY: u8 = 0xf2;
const KEYBOARD_ID: [u8; 2] = [0xab, 0x83];

/// Scan codes (set 1) of pressing and releasing Ctrl, Alt and the extended Delete key.
const CTRL_ALT_DEL: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
/// The maximum number of unread output bytes.
const BUFFER_SIZE: usize = 16;

#[derive(Debug)]
pub struct I8042 {
    ends: EndSender,
    irq: IrqLine,
    control: u8,
    output_port: u8,
    status: u8,
    /// Bytes that the guest reads from the data port.
    output: VecDeque<u8>,
    /// The command whose argument will be the next data byte.
    pending: Option<u8>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct I8042State {
    control: u8,
    output_port: u8,
    status: u8,
    output: Vec<u8>,
    pending: Option<u8>,
}

impl I8042 {
    pub fn new(ends: EndSender, irq: IrqLine) -> I8042 {
        I8042 {
            ends,
            irq,
            control: CONTROL_SYSTEM | CONTROL_KEYBOARD_INTERRUPT | CONTROL_TRANSLATE,
            output_port: 0,
            status: STATUS_KEYLOCK,
            output: VecDeque::with_capacity(BUFFER_SIZE),
            pending: None,
        }
    }

    pub fn state(&self) -> I8042State {
        let I8042 { control, output_port, status, pending, .. } = *self;
        I8042State { control, output_port, status, output: self.output.iter().copied().collect(), pending }
    }

    pub fn restore(&mut self, state: &I8042State) {
        (self.control, self.output_port, self.status) = (state.control, state.output_port, state.status);
        self.output = state.output.iter().copied().take(BUFFER_SIZE).collect();
        self.pending = state.pending;
        self.signal();
    }

    /// Presses Ctrl-Alt-Del. Returns false if the guest's driver has not enabled the keyboard and its interrupt.
    pub fn press_ctrl_alt_del(&mut self) -> bool {
        let listens = self.control & CONTROL_KEYBOARD_INTERRUPT != 0 && self.control & CONTROL_KEYBOARD_DISABLED == 0;
        if listens {
            self.output.clear();
            self.answer(&CTRL_ALT_DEL);
        }
        listens
    }

    fn answer(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.output.len() < BUFFER_SIZE {
                self.output.push_back(*byte);
            }
        }
        self.signal();
    }

    fn signal(&self) {
        if !self.output.is_empty() && self.control & CONTROL_KEYBOARD_INTERRUPT != 0 {
            self.irq.trigger();
        }
    }

    fn command(&mut self, command: u8) {
        self.status |= STATUS_COMMAND;
        match command {
            RESET_COMMAND => self.ends.send(End::Reboot),
            COMMAND_READ_CONTROL => self.answer(&[self.control]),
            COMMAND_WRITE_CONTROL | COMMAND_WRITE_OUTPUT_PORT => self.pending = Some(command),
            COMMAND_SELF_TEST => self.answer(&[SELF_TEST_PASSED]),
            COMMAND_TEST_KEYBOARD => self.answer(&[PORT_TEST_PASSED]),
            COMMAND_TEST_AUX => self.answer(&[AUX_TEST_FAILED]),
            COMMAND_READ_OUTPUT_PORT => self.answer(&[self.output_port]),
            COMMAND_DISABLE_KEYBOARD => self.control |= CONTROL_KEYBOARD_DISABLED,
            COMMAND_ENABLE_KEYBOARD => self.control &= !CONTROL_KEYBOARD_DISABLED,
            // The controller has no second port, so there is nothing to disable.
            COMMAND_DISABLE_AUX => {}
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        self.status &= !STATUS_COMMAND;
        match self.pending.take() {
            Some(COMMAND_WRITE_CONTROL) => self.control = byte,
            Some(COMMAND_WRITE_OUTPUT_PORT) => self.output_port = byte,
            _ => match byte {
                KEYBOARD_RESET => self.answer(&[KEYBOARD_ACK, KEYBOARD_SELF_TEST_PASSED]),
                KEYBOARD_IDENTIFY => self.answer(&[KEYBOARD_ACK, KEYBOARD_ID[0], KEYBOARD_ID[1]]),
                _ => self.answer(&[KEYBOARD_ACK]),
            },
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            DATA => {
                data[0] = self.output.pop_front().unwrap_or(0);
                self.signal();
            }
            COMMAND => {
                data[0] = self.status | if self.output.is_empty() { 0 } else { STATUS_OUTPUT_FULL };
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            DATA => self.data(data[0]),
            COMMAND => self.command(data[0]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::end::{EndReceiver, end_channel};

    fn controller() -> (I8042, EndReceiver) {
        let (sender, receiver) = end_channel().unwrap();
        (I8042::new(sender, IrqLine::new().unwrap()), receiver)
    }

    fn read(device: &mut I8042, offset: u64) -> u8 {
        let mut data = [0xff];
        device.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn reset_command_reboots() {
        let (mut device, ends) = controller();
        device.write(COMMAND, &[RESET_COMMAND]);
        assert_eq!(ends.take(), Some(End::Reboot));
    }

    #[test]
    fn ctrl_alt_del_arrives_as_scan_codes() {
        let (mut device, _ends) = controller();
        assert!(device.press_ctrl_alt_del());
        let mut codes = Vec::new();
        while read(&mut device, COMMAND) & STATUS_OUTPUT_FULL != 0 {
            codes.push(read(&mut device, DATA));
        }
        assert_eq!(codes, CTRL_ALT_DEL);
    }

    #[test]
    fn ctrl_alt_del_without_keyboard_driver_is_reported() {
        let (mut device, _ends) = controller();
        device.write(COMMAND, &[COMMAND_WRITE_CONTROL]);
        device.write(DATA, &[0]);
        assert!(!device.press_ctrl_alt_del());
    }

    #[test]
    fn self_test_passes() {
        let (mut device, _ends) = controller();
        device.write(COMMAND, &[COMMAND_SELF_TEST]);
        assert_eq!(read(&mut device, COMMAND) & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
        assert_eq!(read(&mut device, DATA), SELF_TEST_PASSED);
    }

    #[test]
    fn unread_output_is_bounded() {
        let (mut device, _ends) = controller();
        for _ in 0..1000 {
            device.write(DATA, &[KEYBOARD_IDENTIFY]);
        }
        assert!(device.output.len() <= BUFFER_SIZE);
    }
}
