//! The thread of a virtio device: it waits for notifications of its queues and for the word to stop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// What an event of [`Wakeups`] means when it is not one of the device's own.
const STOP: u64 = u64::MAX;

/// A running thread; it is stopped and joined when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What a device's thread waits on.
#[derive(Debug)]
pub(super) struct Wakeups {
    epoll: Epoll,
    _stop: Arc<EventFd>,
}

impl Worker {
    /// Starts a thread named `name` that runs `body`; `body` returns when [`Wakeups::wait`] says so.
    pub(super) fn spawn(name: &str, body: impl FnOnce(Wakeups) + Send + 'static) -> io::Result<Worker> {
        let stop = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let wakeups = Wakeups { epoll: Epoll::new()?, _stop: Arc::clone(&stop) };
        wakeups.add(stop.as_raw_fd(), EventSet::IN, STOP)?;
        let thread =
            std::thread::Builder::new().name(name.to_string()).stack_size(256 << 10).spawn(move || body(wakeups))?;
        Ok(Worker { stop, thread: Some(thread) })
    }
}

#[cfg(test)]
impl Worker {
    /// Waits for the thread to end by itself.
    pub(super) fn join_for_test(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The counter is written once: it cannot overflow.
        let _ = self.stop.write(1);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("a device's thread panicked");
        }
    }
}

impl Wakeups {
    /// Waits on `fd` for `events` too; they come with `token`.
    pub(super) fn add(&self, fd: i32, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    /// Waits until something happens or `timeout_ms` has passed (-1: for ever), and gives each event's token and
    /// kinds to `handle`. Returns false when the thread is to stop.
    pub(super) fn wait(&self, timeout_ms: i32, mut handle: impl FnMut(u64, EventSet)) -> bool {
        let mut events = [EpollEvent::default(); 32];
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) => {
                log::error!("a device's thread cannot wait: {error}");
                return false;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return false;
            }
            handle(event.data(), event.event_set());
        }
        true
    }
}
