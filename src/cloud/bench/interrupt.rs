//! Handles Ctrl-C and termination signals during a benchmark: kills the running VMs, so that no wait for them continues.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::AsFd;
use wisp_agent::poll::{Interest, poll};

use machine::control::{ControlClient, ControlRequest, SOCKET};
use machine::sync::lock;
use node::guest::Signals;

const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// State shared between the signal thread and the bench.
#[derive(Debug, Default)]
struct Shared {
    /// Number of the signal that has arrived, or 0.
    signal: AtomicI32,
    /// Directories of the running VMMs.
    machines: Mutex<Vec<PathBuf>>,
}

/// Handles this process's signals until it is dropped.
#[derive(Debug)]
pub(super) struct Interrupt {
    shared: Arc<Shared>,
    over: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupt {
    pub(super) fn watch() -> std::io::Result<Interrupt> {
        let shared = Arc::new(Shared::default());
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let signals = Signals::take(&SIGNALS)?;
        let (for_thread, ends) = (shared.clone(), over.clone());
        let wait = move || wait(&signals, &ends, &for_thread);
        let thread = thread::Builder::new().name("bench-signals".into()).spawn(wait)?;
        Ok(Interrupt { shared, over, thread: Some(thread) })
    }

    /// Registers the VMM in `dir` as running. If a signal has already arrived, kills the VM.
    pub(super) fn guard(&self, dir: &Path) {
        lock(&self.shared.machines).push(dir.to_path_buf());
        if self.signal().is_some() {
            kill(dir);
        }
    }

    pub(super) fn release(&self, dir: &Path) {
        lock(&self.shared.machines).retain(|guarded| guarded != dir);
    }

    pub(super) fn signal(&self) -> Option<i32> {
        Some(self.shared.signal.load(Ordering::Acquire)).filter(|signal| *signal != 0)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // This is the only write to the eventfd, so its counter cannot overflow.
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Kills the registered VMs. Returns false if none is registered or if the VMM of one cannot be reached.
    fn kill_machines(&self) -> bool {
        let machines = lock(&self.machines).clone();
        let reached = machines.iter().filter(|dir| kill(dir)).count();
        !machines.is_empty() && reached == machines.len()
    }
}

/// Kills the VM in `dir`. Returns false if its VMM cannot be reached.
fn kill(dir: &Path) -> bool {
    let sent = ControlClient::connect(&dir.join(SOCKET))
        .and_then(|mut client| client.send(&ControlRequest::Kill { by: "a signal to wisp bench".into() }));
    sent.is_ok()
}

fn wait(signals: &Signals, over: &OwnedFd, shared: &Shared) {
    let watched = [Some((signals.as_fd(), Interest::Read)), Some((over.as_fd(), Interest::Read))];
    while let Ok([signal, over]) = poll(watched, None) {
        if over.read {
            return;
        }
        let Some(number) = signal.read.then(|| signals.next()).flatten() else { continue };
        shared.signal.store(number, Ordering::Release);
        if !shared.kill_machines() {
            // A VM that is still starting, or whose VMM is not listening yet, ends when its owner, this process, exits.
            std::process::exit(128 + number);
        }
    }
}
