//! Runs a virtio device's thread, which waits for queue notifications, other events and a request to pause.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{ActivateError, QueueState};
use crate::cpu::time::ThreadClock;
use crate::sandbox::calls::ThreadKind;
use crate::sandbox::threads;

/// Event token of the pause request. Devices must not use it for their own events.
const PAUSE: u64 = u64::MAX;

/// The state of a device's thread. `run` serves the queues until [`Wakeups::wait`] reports a pause or a queue is
/// invalid, and finishes the work in progress. It can be called again.
pub(super) trait Serve: Send + 'static {
    /// Selects the thread's seccomp filter.
    const KIND: ThreadKind;

    fn run(&mut self);

    fn queue_states(&self) -> Vec<QueueState>;
}

/// The thread of an active device. Dropping it stops and joins the thread.
#[derive(Debug)]
pub(super) struct Worker<S> {
    name: String,
    wakeups: Arc<Wakeups>,
    clock: Arc<ThreadClock>,
    state: State<S>,
}

#[derive(Debug)]
enum State<S> {
    Running(JoinHandle<S>),
    Paused(S),
    /// The thread panicked or could not be started, so the service is gone.
    Lost,
}

#[derive(Debug)]
pub(super) struct Wakeups {
    epoll: Epoll,
    pause: EventFd,
}

impl<S: Serve> Worker<S> {
    /// Builds the service with `make` and starts its thread. `clock` counts the thread's CPU time.
    pub(super) fn spawn(
        name: &str,
        clock: Arc<ThreadClock>,
        make: impl FnOnce(Arc<Wakeups>) -> io::Result<S>,
    ) -> io::Result<Worker<S>> {
        let wakeups = Arc::new(Wakeups::new()?);
        let state = State::Paused(make(Arc::clone(&wakeups))?);
        let mut worker = Worker { name: name.to_string(), wakeups, clock, state };
        worker.resume()?;
        Ok(worker)
    }

    /// Stops the thread. Returns its service, or `None` if the thread panicked or could not be started.
    pub(super) fn pause(&mut self) -> Option<&S> {
        if let State::Running(thread) = std::mem::replace(&mut self.state, State::Lost) {
            // The counter is read between two writes, so it cannot overflow.
            let _ = self.wakeups.pause.write(1);
            match thread.join() {
                Ok(service) => self.state = State::Paused(service),
                Err(_) => log::error!("the device thread {} panicked", self.name),
            }
        }
        match &self.state {
            State::Paused(service) => Some(service),
            _ => None,
        }
    }

    /// Starts the paused thread again. It first checks for work that arrived during the pause.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        let State::Paused(mut service) = std::mem::replace(&mut self.state, State::Lost) else { return Ok(()) };
        let _ = self.wakeups.pause.read();
        let clock = Arc::clone(&self.clock);
        let run = move || {
            let counted = clock.count_this_thread();
            service.run();
            drop(counted);
            service
        };
        let thread = threads::spawn(self.name.clone(), S::KIND, run)?;
        self.state = State::Running(thread);
        Ok(())
    }
}

/// Implements [`VirtioDevice::pause`](super::VirtioDevice::pause) for a device that has a worker while it is active.
pub(super) fn pause<S: Serve>(worker: &mut Option<Worker<S>>) -> Vec<QueueState> {
    worker.as_mut().and_then(Worker::pause).map_or_else(Vec::new, Serve::queue_states)
}

/// Implements [`VirtioDevice::resume`](super::VirtioDevice::resume) for such a device, whose name is `device`.
pub(super) fn resume<S: Serve>(worker: &mut Option<Worker<S>>, device: &'static str) -> Result<(), ActivateError> {
    worker.as_mut().map_or(Ok(()), Worker::resume).map_err(|source| ActivateError { device, source })
}

#[cfg(test)]
impl<S> Worker<S> {
    pub(super) fn join_for_test(mut self) {
        if let State::Running(thread) = std::mem::replace(&mut self.state, State::Lost) {
            thread.join().map(drop).unwrap();
        }
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        if let State::Running(thread) = std::mem::replace(&mut self.state, State::Lost) {
            let _ = self.wakeups.pause.write(1);
            if thread.join().is_err() {
                log::error!("the device thread {} panicked", self.name);
            }
        }
    }
}

/// Returns the timeout for [`Wakeups::wait`] in milliseconds, rounded up, because waking early would find nothing due.
pub(super) fn timeout_ms(wait: Option<Duration>) -> i32 {
    wait.map_or(-1, |wait| i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX))
}

impl Wakeups {
    fn new() -> io::Result<Wakeups> {
        let pause = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let wakeups = Wakeups { epoll: Epoll::new()?, pause };
        wakeups.add(wakeups.pause.as_raw_fd(), EventSet::IN, PAUSE)?;
        Ok(wakeups)
    }

    #[cfg(test)]
    pub(super) fn for_test() -> Arc<Wakeups> {
        Arc::new(Wakeups::new().unwrap())
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
