//! A model of `vmm::virtio::wakeups`: one queue's eventfd and the pause request, both level-triggered.

use std::io;

use loom::sync::{Condvar, Mutex, MutexGuard};

#[derive(Debug)]
pub struct Wakeups {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    is_kicked: bool,
    must_pause: bool,
}

impl Wakeups {
    pub fn new() -> io::Result<Wakeups> {
        Ok(Wakeups { pending: Mutex::new(Pending::default()), changed: Condvar::new() })
    }

    pub fn request_pause(&self) {
        self.lock().must_pause = true;
        self.changed.notify_all();
    }

    pub fn clear_pause(&self) {
        self.lock().must_pause = false;
    }

    /// Kicks the queue.
    pub fn kick(&self) {
        self.lock().is_kicked = true;
        self.changed.notify_all();
    }

    /// Waits for a kick or a pause request, and calls `handle` for a kick. Returns false if the thread must pause.
    pub fn wait(&self, handle: impl FnOnce()) -> bool {
        let mut pending = self.lock();
        while !pending.is_kicked && !pending.must_pause {
            pending = self.changed.wait(pending).unwrap();
        }
        let (is_kicked, must_pause) = (std::mem::take(&mut pending.is_kicked), pending.must_pause);
        drop(pending);
        if is_kicked {
            handle();
        }
        !must_pause
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap()
    }
}
