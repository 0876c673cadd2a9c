//! Checks the VMM's thread hand-overs in every interleaving, with [loom](https://docs.rs/loom).
//!
//! The crate compiles source files of the VMM (`cpu/gate.rs` and `virtio/worker.rs`) with loom's primitives as
//! `crate::sync`, and small models of the rest: a guest that runs until it is kicked, and wakeups without epoll. A lost
//! wakeup is a deadlock in some interleaving, which loom reports. loom never lets a wait time out, so a timeout cannot
//! hide a lost wakeup.
#![cfg(test)]

mod cpu;
mod sandbox;
mod virtio;

mod sync {
    pub use loom::sync::atomic::AtomicBool;
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
    pub use loom::thread::JoinHandle;
}

/// Runs `scenario` in every interleaving of its threads with at most `preemptions` involuntary switches.
fn check(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(scenario);
}
