//! Interrupt lines: eventfds that KVM turns into edges on I/O APIC pins (irqfd).

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A device's end of an interrupt line.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    pub fn new() -> io::Result<IrqLine> {
        Ok(IrqLine(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?))
    }

    /// Raises and lowers the line.
    pub fn trigger(&self) {
        // The write fails only if the counter is full, in which case KVM has an edge to deliver already.
        let _ = self.0.write(1);
    }

    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }

    pub fn try_clone(&self) -> io::Result<IrqLine> {
        Ok(IrqLine(self.0.try_clone()?))
    }
}
