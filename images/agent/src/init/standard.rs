//! The standard streams of process 1.
//!
//! The kernel opens `/dev/console` for it as descriptors 0, 1 and 2, or none of them where there is
//! no console. A socket in such a place would be written to by whatever prints a message.

use std::os::fd::{AsRawFd, IntoRawFd};

use rustix::fs::{Mode, OFlags, open};

use crate::boot_timer::BootTimer;

/// Sees to it that nothing opened from now on becomes a standard stream.
///
/// The timer was the first to be opened: where it is a descriptor above 2, all is well, without a
/// system call to find out. Else it is opened anew, above them.
pub fn keep_clear_of(timer: Option<BootTimer>) -> Option<BootTimer> {
    if timer.as_ref().is_some_and(BootTimer::is_above_standard_streams) {
        return timer;
    }
    let had_timer = timer.is_some();
    drop(timer);
    while let Ok(null) = open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            break;
        }
        // It stays open as the stream it has become.
        let _ = null.into_raw_fd();
    }
    if had_timer { BootTimer::open() } else { None }
}
