//! Interrupt lines: an eventfd that KVM turns into an edge on a pin of the I/O APIC (irqfd).

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// One line, from a device's end. Registered with KVM by [`crate::vmm::machine`].
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    /// A line that leads nowhere yet.
    pub fn new() -> io::Result<IrqLine> {
        Ok(IrqLine(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?))
    }

    /// Raises and lowers the line.
    pub fn trigger(&self) {
        // The write fails only if the counter is full, which means that KVM has an edge to deliver already.
        let _ = self.0.write(1);
    }

    /// The eventfd, to be registered with KVM.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// A second handle on the same line.
    pub fn try_clone(&self) -> io::Result<IrqLine> {
        Ok(IrqLine(self.0.try_clone()?))
    }
}
