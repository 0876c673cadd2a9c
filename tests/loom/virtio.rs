//! The VMM's device threads, with a model of their wakeups.

mod wakeups;
#[path = "../../src/vmm/virtio/worker.rs"]
pub mod worker;
mod worker_tests;

#[derive(Debug, PartialEq, Eq)]
pub struct QueueState {
    pub served: u32,
}

#[derive(Debug)]
pub struct ActivateError {
    pub device: &'static str,
    pub source: std::io::Error,
}
