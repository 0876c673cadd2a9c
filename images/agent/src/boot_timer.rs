//! Tells the monitor how far the boot has come: one byte to an I/O port, by way of `/dev/port`.
//!
//! A guest without `/dev/port`, or under another monitor, loses nothing but the measurement.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use wisp_agent::BOOT_TIMER_PORT;

/// The open port.
#[derive(Debug)]
pub struct BootTimer(OwnedFd);

impl BootTimer {
    /// Opens the port, where there is one.
    pub fn open() -> Option<Self> {
        open("/dev/port", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok().map(Self)
    }

    /// Writes a mark, of which the monitor notes the time.
    pub fn mark(&self, mark: u8) {
        let _ = rustix::io::pwrite(&self.0, &[mark], BOOT_TIMER_PORT.into());
    }

    /// Whether the standard streams were open before this: else it took the place of one.
    pub fn is_above_standard_streams(&self) -> bool {
        self.0.as_raw_fd() > 2
    }
}
