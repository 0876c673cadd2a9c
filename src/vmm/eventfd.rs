//! Creates event file descriptors (eventfd(2)).

use vmm_sys_util::eventfd::EventFd;

use super::error::Error;

/// Returns a non-blocking event file descriptor, which is closed on exec.
pub(super) fn new_eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("create an eventfd"))
}
