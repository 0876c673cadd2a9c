//! The synchronization primitives of the code that `tests/loom` checks in every interleaving of its threads. That crate
//! compiles the same source files with loom's primitives under these names.

pub use std::sync::atomic::AtomicBool;
pub use std::sync::{Condvar, Mutex, MutexGuard};
pub use std::thread::JoinHandle;
