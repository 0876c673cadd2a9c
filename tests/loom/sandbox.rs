//! Models of `vmm::sandbox`: threads without seccomp filters, and a host that may refuse to start one.

pub mod calls {
    #[derive(Debug, Clone, Copy)]
    pub enum ThreadKind {
        Block,
    }
}

pub mod threads {
    use super::calls::ThreadKind;
    use crate::sync::JoinHandle;
    use loom::sync::atomic::{AtomicBool, Ordering};
    use std::io;

    loom::lazy_static! {
        static ref IS_FULL: AtomicBool = AtomicBool::new(false);
    }

    /// Makes the host refuse to start more threads.
    pub fn refuse() {
        IS_FULL.store(true, Ordering::SeqCst);
    }

    pub fn spawn<T: Send + 'static>(
        name: String,
        _: ThreadKind,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        if IS_FULL.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        loom::thread::Builder::new().name(name).spawn(run)
    }
}
