//! Reports boot progress to the VMM: writes a byte to an I/O port through `/dev/port`. Failures lose only the timing.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use wisp_agent::BOOT_TIMER_PORT;

#[derive(Debug)]
pub struct BootTimer(OwnedFd);

impl BootTimer {
    pub fn open() -> Option<Self> {
        open("/dev/port", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok().map(Self)
    }

    pub fn mark(&self, mark: u8) {
        let _ = rustix::io::pwrite(&self.0, &[mark], BOOT_TIMER_PORT.into());
    }

    /// Returns false if this descriptor is a standard stream's, because the standard streams were not open.
    pub fn is_above_standard_streams(&self) -> bool {
        self.0.as_raw_fd() > 2
    }
}
