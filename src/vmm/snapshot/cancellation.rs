//! Cancels a snapshot whose memory is being written.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use machine::sync::lock;

/// Set once, when the machine is killed. All later snapshots of the machine fail, too.
#[derive(Debug, Default)]
pub struct Cancellation {
    is_canceled: AtomicBool,
    /// The child that copies the memory. It has not been waited for, so its process ID cannot be reused.
    child: Mutex<Option<libc::pid_t>>,
}

impl Cancellation {
    pub fn cancel(&self) {
        self.is_canceled.store(true, Ordering::SeqCst);
        self.kill_child(&self.child());
    }

    /// Fails if the snapshot is canceled.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.is_canceled.load(Ordering::SeqCst) {
            true => Err(io::Error::other("the machine is being stopped")),
            false => Ok(()),
        }
    }

    /// Registers a child to kill on cancellation. Kills it at once if the snapshot is already canceled.
    pub(super) fn register(&self, child: libc::pid_t) {
        let mut slot = self.child();
        *slot = Some(child);
        if self.check().is_err() {
            self.kill_child(&slot);
        }
    }

    /// Must be called once the child has exited, and before it is waited for.
    pub(super) fn unregister(&self) {
        *self.child() = None;
    }

    fn kill_child(&self, child: &Option<libc::pid_t>) {
        if let Some(child) = child {
            // SAFETY: it is a child of this process that has not been waited for.
            unsafe { libc::kill(*child, libc::SIGKILL) };
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<libc::pid_t>> {
        lock(&self.child)
    }
}
