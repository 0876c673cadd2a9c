//! The VMM's gate, with models of a vCPU's state and of a thread's CPU clock.

#[path = "../../src/vmm/cpu/gate.rs"]
pub mod gate;
mod gate_tests;

pub mod state {
    /// The state of a vCPU whose guest was entered so many times.
    #[derive(Debug, PartialEq, Eq)]
    pub struct VcpuState {
        pub id: u32,
        pub entries: u32,
    }

    #[derive(Debug)]
    pub enum StateError {
        Stopping,
    }
}

pub mod time {
    use loom::sync::atomic::{AtomicBool, Ordering};

    /// Fails the test if two threads are counted at the same time.
    #[derive(Debug)]
    pub struct ThreadClock(AtomicBool);

    impl ThreadClock {
        pub fn new() -> ThreadClock {
            ThreadClock(AtomicBool::new(false))
        }

        pub fn count_this_thread(&self) -> CountedThread<'_> {
            assert!(!self.0.swap(true, Ordering::SeqCst), "two threads of a device run at the same time");
            CountedThread(self)
        }
    }

    #[derive(Debug)]
    pub struct CountedThread<'a>(&'a ThreadClock);

    impl Drop for CountedThread<'_> {
        fn drop(&mut self) {
            self.0.0.store(false, Ordering::SeqCst);
        }
    }
}
