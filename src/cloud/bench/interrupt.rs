//! Ctrl-C during a bench: the guest that runs ends at once, and with it whatever was waited for.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::AsFd;
use wisp_agent::poll::{Interest, poll};

use crate::guest::Signals;
use crate::vmm::control::{ControlClient, Request, SOCKET};

/// The signals that end a bench.
const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// What the thread that waits for signals shares with the bench.
#[derive(Debug, Default)]
struct Shared {
    /// The signal that came.
    signal: AtomicI32,
    /// The folder of the machine that runs.
    machine: Mutex<Option<PathBuf>>,
}

/// Takes this process's signals until it is dropped.
#[derive(Debug)]
pub(super) struct Interrupt {
    shared: Arc<Shared>,
    over: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupt {
    /// Begins to.
    pub(super) fn watch() -> std::io::Result<Interrupt> {
        let shared = Arc::new(Shared::default());
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let signals = Signals::take(&SIGNALS)?;
        let (for_thread, ends) = (shared.clone(), over.clone());
        let wait = move || wait(&signals, &ends, &for_thread);
        let thread = thread::Builder::new().name("bench-signals".into()).spawn(wait)?;
        Ok(Interrupt { shared, over, thread: Some(thread) })
    }

    /// The machine in this folder runs now; one that a signal came for already ends.
    pub(super) fn guard(&self, folder: &Path) {
        *self.shared.machine.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.to_path_buf());
        if self.signal().is_some() {
            self.shared.end_machine();
        }
    }

    /// None does any more.
    pub(super) fn release(&self) {
        *self.shared.machine.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The signal that came, if one did.
    pub(super) fn signal(&self) -> Option<i32> {
        Some(self.shared.signal.load(Ordering::Acquire)).filter(|signal| *signal != 0)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // It fails only where the counter is full, and then the thread has ended.
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Whether there is one that was told.
    fn end_machine(&self) -> bool {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(folder) = machine else { return false };
        let told = ControlClient::connect(&folder.join(SOCKET))
            .and_then(|mut monitor| monitor.send(&Request::Kill { by: "a signal to wisp bench".into() }));
        told.is_ok()
    }
}

fn wait(signals: &Signals, over: &OwnedFd, shared: &Shared) {
    let watched = [Some((signals.as_fd(), Interest::Read)), Some((over.as_fd(), Interest::Read))];
    while let Ok([signal, over]) = poll(watched, None) {
        if over.read {
            return;
        }
        let Some(number) = signal.read.then(|| signals.next()).flatten() else { continue };
        shared.signal.store(number, Ordering::Release);
        if !shared.end_machine() {
            // A guest that is being made, or whose monitor does not listen yet, ends with its owner: this process.
            std::process::exit(128 + number);
        }
    }
}
