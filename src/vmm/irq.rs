//! Interrupt lines: eventfds that KVM turns into edges on I/O APIC pins (irqfd).

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A device's end of an interrupt line. [`crate::vmm::machine`] registers it with KVM.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    /// Creates a line that is not registered yet.
    pub fn new() -> io::Result<IrqLine> {
        Ok(IrqLine(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?))
    }

    /// Raises and lowers the line.
    pub fn trigger(&self) {
        // The write fails only if the counter is full, in which case KVM has an edge to deliver already.
        let _ = self.0.write(1);
    }

    /// The eventfd to register with KVM.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// Returns a second handle for the same line.
    pub fn try_clone(&self) -> io::Result<IrqLine> {
        Ok(IrqLine(self.0.try_clone()?))
    }
}
