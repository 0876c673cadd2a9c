//! The events that a device's thread waits for: queue notifications, the device's own events and a request to pause.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Event token of the pause request. Devices must not use it for their own events.
const PAUSE: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Wakeups {
    epoll: Epoll,
    pause: EventFd,
}

/// Returns the timeout for [`Wakeups::wait`] in milliseconds, rounded up, because waking early would find nothing due.
pub(super) fn timeout_ms(wait: Option<Duration>) -> i32 {
    wait.map_or(-1, |wait| i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX))
}

impl Wakeups {
    pub(super) fn new() -> io::Result<Wakeups> {
        let pause = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let wakeups = Wakeups { epoll: Epoll::new()?, pause };
        wakeups.add(wakeups.pause.as_raw_fd(), EventSet::IN, PAUSE)?;
        Ok(wakeups)
    }

    #[cfg(test)]
    pub(super) fn for_test() -> std::sync::Arc<Wakeups> {
        std::sync::Arc::new(Wakeups::new().unwrap())
    }

    /// Makes [`wait`](Wakeups::wait) return false until [`clear_pause`](Wakeups::clear_pause) is called.
    pub(super) fn request_pause(&self) {
        // The counter is read between two writes, so it cannot overflow.
        let _ = self.pause.write(1);
    }

    pub(super) fn clear_pause(&self) {
        let _ = self.pause.read();
    }

    pub(super) fn add(&self, fd: i32, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    pub(super) fn change(&self, fd: i32, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, token))
    }

    pub(super) fn remove(&self, fd: i32) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Waits for events, and calls `handle` with the token and kinds of each. -1 means no timeout. Returns false if the
    /// thread must pause or polling failed.
    pub(super) fn wait(&self, timeout_ms: i32, mut handle: impl FnMut(u64, EventSet)) -> bool {
        let mut events = [EpollEvent::default(); 32];
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) => {
                log::error!("polling in a device thread failed: {error}");
                return false;
            }
        };
        // Events that arrive together with the pause request must still be handled.
        let mut is_running = true;
        for event in &events[..count] {
            if event.data() == PAUSE {
                is_running = false;
            } else {
                handle(event.data(), event.event_set());
            }
        }
        is_running
    }
}
