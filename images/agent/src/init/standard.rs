//! Standard streams of process 1.
//!
//! The kernel opens `/dev/console` as descriptors 0, 1 and 2, or none of them if there is no console. A socket with
//! one of these numbers would receive every printed message.

use std::os::fd::{AsRawFd, IntoRawFd};

use rustix::fs::{Mode, OFlags, open};

use crate::boot_timer::BootTimer;

/// Ensures that no later descriptor becomes a standard stream. If the timer's descriptor is above 2, the streams are
/// open already. Otherwise `/dev/null` fills them, and the timer is reopened above them.
pub fn reserve_standard_streams(timer: Option<BootTimer>) -> Option<BootTimer> {
    if timer.as_ref().is_some_and(BootTimer::is_above_standard_streams) {
        return timer;
    }
    let had_timer = timer.is_some();
    drop(timer);
    while let Ok(null) = open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            break;
        }
        // Stays open as a standard stream.
        let _ = null.into_raw_fd();
    }
    if had_timer { BootTimer::open() } else { None }
}
