//! Work that goes on after the response: stops, terminations and reboots.
//!
//! If the server is killed, the next command or request finishes or undoes such work, as it does for commands.

use std::sync::{Condvar, Mutex};
use std::thread;

use cloud::{Cloud, CloudError, Outcome};
use machine::sync::lock;

#[derive(Debug, Default)]
pub struct Background {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Background {
    /// Runs `work` in a thread of its own, with its own access to the data directory. Its failure is logged.
    pub fn run(
        self: &std::sync::Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&Cloud) -> Outcome<Result<(), CloudError>> + Send + 'static,
    ) {
        *lock(&self.running) += 1;
        let running = Running(std::sync::Arc::clone(self));
        let spawned = thread::Builder::new().name(name.into()).spawn(move || {
            let _running = running;
            let done = match Cloud::open_without_reconciling() {
                Ok(cloud) => work(&cloud),
                Err(error) => Err(error).into(),
            };
            done.warnings.into_iter().for_each(|warning| log::warn!("{name}: {warning}"));
            if let Err(error) = done.value {
                log::error!("{name}: {error}");
            }
        });
        if let Err(error) = spawned {
            log::error!("{name}: cannot start a thread: {error}");
        }
    }

    /// Waits until all work has ended.
    pub fn wait(&self) {
        let mut running = lock(&self.running);
        while *running > 0 {
            running = self.ended.wait(running).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

struct Running(std::sync::Arc<Background>);

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.ended.notify_all();
    }
}
