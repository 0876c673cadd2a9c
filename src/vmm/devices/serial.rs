//! The serial port, a 16550 at COM1, which is the guest's console. vm-superio implements its registers.
//!
//! Output goes to the [`Console`](super::console::Console) byte by byte. Input waits in a bounded buffer until the
//! guest has drained the 16550's FIFO. An eventfd signals when a full buffer has free space again.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{Serial as Registers, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use super::console::ConsoleWriter;
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::snapshot::SnapshotError;

/// COM1's first port, number of ports and interrupt line.
pub const PORT: u16 = 0x3f8;
pub const LENGTH: u64 = 8;
pub const IRQ: u32 = 4;

const INPUT_LIMIT: usize = 4096;

impl vm_superio::Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        IrqLine::trigger(self);
        Ok(())
    }
}

/// Records when the guest has read all input in the 16550's FIFO.
struct InputEvents {
    emptied: Arc<AtomicBool>,
}

impl SerialEvents for InputEvents {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.emptied.store(true, Ordering::Relaxed);
    }
}

pub struct Serial {
    registers: Registers<IrqLine, InputEvents, ConsoleWriter>,
    waiting: VecDeque<u8>,
    emptied: Arc<AtomicBool>,
    /// Signaled when the input buffer was full and has free space again.
    room: EventFd,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupts: [u8; 2],
    line: [u8; 2],
    modem: [u8; 2],
    scratch: u8,
    received: Vec<u8>,
    waiting: Vec<u8>,
}

impl Default for SerialState {
    /// Returns the state after a reset.
    fn default() -> SerialState {
        SerialState::of(vm_superio::SerialState::default(), Vec::new())
    }
}

impl SerialState {
    fn of(registers: vm_superio::SerialState, waiting: Vec<u8>) -> SerialState {
        SerialState {
            divisor: [registers.baud_divisor_low, registers.baud_divisor_high],
            interrupts: [registers.interrupt_enable, registers.interrupt_identification],
            line: [registers.line_control, registers.line_status],
            modem: [registers.modem_control, registers.modem_status],
            scratch: registers.scratch,
            received: registers.in_buffer,
            waiting,
        }
    }

    fn registers(&self) -> vm_superio::SerialState {
        vm_superio::SerialState {
            baud_divisor_low: self.divisor[0],
            baud_divisor_high: self.divisor[1],
            interrupt_enable: self.interrupts[0],
            interrupt_identification: self.interrupts[1],
            line_control: self.line[0],
            line_status: self.line[1],
            modem_control: self.modem[0],
            modem_status: self.modem[1],
            scratch: self.scratch,
            in_buffer: self.received.clone(),
        }
    }
}

impl Serial {
    /// Creates the device in `state`. Fails if the state is invalid.
    pub fn new(
        state: &SerialState,
        irq: IrqLine,
        output: ConsoleWriter,
        room: EventFd,
    ) -> Result<Serial, SnapshotError> {
        let emptied = Arc::new(AtomicBool::new(false));
        let events = InputEvents { emptied: Arc::clone(&emptied) };
        let registers = Registers::from_state(&state.registers(), irq, events, output)
            .map_err(|error| SnapshotError::Device(format!("invalid serial port registers: {error:?}")))?;
        let waiting = state.waiting.iter().copied().take(INPUT_LIMIT).collect();
        Ok(Serial { registers, waiting, emptied, room })
    }

    pub fn state(&self) -> SerialState {
        SerialState::of(self.registers.state(), self.waiting.iter().copied().collect())
    }

    /// Raises an unacknowledged interrupt again: KVM may have saved the interrupt controllers before its delivery.
    pub fn repeat_interrupt(&self) {
        const NOTHING_PENDING: u8 = 1;
        if self.registers.state().interrupt_identification & NOTHING_PENDING == 0 {
            self.registers.interrupt_evt().trigger();
        }
    }

    /// Returns the number of input bytes that can be accepted now.
    pub fn input_room(&self) -> usize {
        INPUT_LIMIT - self.waiting.len()
    }

    /// Accepts input up to the free space. Returns the number of bytes accepted.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.input_room());
        self.waiting.extend(&bytes[..taken]);
        self.feed();
        taken
    }

    /// Moves waiting input into the 16550's FIFO.
    fn feed(&mut self) {
        while !self.waiting.is_empty() && self.registers.fifo_capacity() > 0 {
            let count = self.registers.fifo_capacity().min(self.waiting.len());
            let bytes: Vec<u8> = self.waiting.iter().take(count).copied().collect();
            match self.registers.enqueue_raw_bytes(&bytes) {
                Ok(0) | Err(_) => break,
                Ok(taken) => drop(self.waiting.drain(..taken)),
            }
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data[0] = self.registers.read(offset as u8);
        if self.emptied.swap(false, Ordering::Relaxed) {
            let was_full = self.input_room() == 0;
            self.feed();
            if was_full {
                // The counter cannot overflow: it grows by one each time a full buffer gets free space.
                let _ = self.room.write(1);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // The console itself logs write errors, so the port always succeeds.
        let _ = self.registers.write(offset as u8, data[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console::Console;
    use machine::timeline::Timeline;

    const LINE_STATUS: u64 = 5;
    const DATA_READY: u8 = 1;

    fn serial() -> Serial {
        let console = Console::new(None, Arc::new(Timeline::default())).unwrap();
        let room = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Serial::new(&SerialState::default(), IrqLine::new().unwrap(), console.writer(), room).unwrap()
    }

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut data = [0xff];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn input_beyond_fifo_is_delivered() {
        let mut serial = serial();
        let sent: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        assert_eq!(serial.input(&sent), 1000);
        let mut received = Vec::new();
        while read(&mut serial, LINE_STATUS) & DATA_READY != 0 {
            received.push(read(&mut serial, 0));
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn unread_input_is_bounded() {
        let mut serial = serial();
        let mut taken = 0;
        for _ in 0..10 {
            taken += serial.input(&[b'x'; INPUT_LIMIT]);
        }
        assert!(taken <= INPUT_LIMIT + 64, "{taken}");
        assert_eq!(serial.input(b"more"), 0);
    }

    #[test]
    fn full_buffer_signals_free_space() {
        let mut serial = serial();
        while serial.input(&[b'x'; 512]) > 0 {}
        assert!(serial.room.read().is_err());
        while read(&mut serial, LINE_STATUS) & DATA_READY != 0 && serial.input_room() == 0 {
            read(&mut serial, 0);
        }
        assert!(serial.room.read().is_ok());
    }
}
