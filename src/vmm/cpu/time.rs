//! How much of the host's CPUs the vCPUs had: the guest's share and what serving it took.

use std::sync::{Mutex, PoisonError};

/// The clocks of a machine's vCPU threads.
#[derive(Debug)]
pub struct CpuTime(Vec<Mutex<ThreadTime>>);

/// What one thread had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThreadTime {
    /// It runs, and this is its clock, which goes with it.
    Running(libc::clockid_t),
    /// It is not there yet, or any more, and had this many nanoseconds.
    Ended(u64),
}

/// A thread that is counted; dropped by the thread itself, as the last thing that it does.
#[derive(Debug)]
pub struct CountedThread<'a>(&'a Mutex<ThreadTime>);

impl CpuTime {
    /// For `vcpus` threads, none of which runs yet.
    pub fn new(vcpus: u32) -> CpuTime {
        CpuTime((0..vcpus).map(|_| Mutex::new(ThreadTime::Ended(0))).collect())
    }

    /// Counts the calling thread as that of vCPU `id`, until what is returned is dropped.
    pub fn count_this_thread(&self, id: u32) -> Option<CountedThread<'_>> {
        let time = self.0.get(id as usize)?;
        let mut clock = 0;
        // SAFETY: the thread is the calling one, so that its id is valid; `clock` is written to, no more.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        if error != 0 {
            return None;
        }
        *time.lock().unwrap_or_else(PoisonError::into_inner) = ThreadTime::Running(clock);
        Some(CountedThread(time))
    }

    /// What all of them had so far, in nanoseconds.
    pub fn total_ns(&self) -> u64 {
        self.0.iter().map(|time| time.lock().unwrap_or_else(PoisonError::into_inner).ns()).sum()
    }
}

impl Drop for CountedThread<'_> {
    fn drop(&mut self) {
        let mut time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *time = ThreadTime::Ended(time.ns());
    }
}

impl ThreadTime {
    fn ns(self) -> u64 {
        let clock = match self {
            ThreadTime::Running(clock) => clock,
            ThreadTime::Ended(ns) => return ns,
        };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is written to, no more. The thread of the clock runs: it says that it ends before it does.
        match unsafe { libc::clock_gettime(clock, &raw mut time) } {
            0 => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_time_is_counted_while_it_runs_and_kept_when_it_has_ended() {
        let time = CpuTime::new(2);
        assert_eq!(time.total_ns(), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let counted = time.count_this_thread(1).unwrap();
                let mut sum = 0_u64;
                while time.total_ns() < 1_000_000 {
                    sum = std::hint::black_box(sum + 1);
                }
                drop(counted);
            });
        });
        assert!(time.total_ns() >= 1_000_000);
        assert!(time.count_this_thread(2).is_none());
    }
}
