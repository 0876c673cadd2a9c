//! Runs a virtio device's thread, which waits for queue notifications, other events and a request to pause.

use std::io;
use std::sync::Arc;

pub(super) use super::wakeups::Wakeups;
use super::{ActivateError, QueueState};
use crate::cpu::time::ThreadClock;
use crate::sandbox::calls::ThreadKind;
use crate::sandbox::threads;
use crate::sync::JoinHandle;

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
        self.stop();
        match &self.state {
            State::Paused(service) => Some(service),
            _ => None,
        }
    }

    /// Starts the paused thread again. It first checks for work that arrived during the pause.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        let mut service = match std::mem::replace(&mut self.state, State::Lost) {
            State::Paused(service) => service,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        self.wakeups.clear_pause();
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

impl<S> Worker<S> {
    /// Stops the thread if it is running, and takes its service back.
    fn stop(&mut self) {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Running(thread) => {
                self.wakeups.request_pause();
                match thread.join() {
                    Ok(service) => self.state = State::Paused(service),
                    Err(_) => log::error!("the device thread {} panicked", self.name),
                }
            }
            other => self.state = other,
        }
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
        self.stop();
    }
}
