//! CPU time that a machine's vCPU threads and device threads use on the host.

use std::sync::{Arc, Mutex, MutexGuard};

/// CPU time of one thread, or of several threads that run one after the other.
#[derive(Debug, Default)]
pub struct ThreadClock(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// CPU time of threads that have ended.
    ended_ns: u64,
    /// The clock of the running thread, valid until the thread ends.
    running: Option<libc::clockid_t>,
}

/// Marks a thread as counted. The thread itself must drop the value, just before it ends.
#[derive(Debug)]
pub struct CountedThread<'a>(&'a ThreadClock);

impl ThreadClock {
    /// Counts the calling thread until the returned value is dropped. Returns `None` if the host has no clock for it.
    pub fn count_this_thread(&self) -> Option<CountedThread<'_>> {
        let mut clock = 0;
        // SAFETY: the ID of the calling thread is valid; the call only writes to `clock`.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        if error != 0 {
            return None;
        }
        self.lock().running = Some(clock);
        Some(CountedThread(self))
    }

    pub fn ns(&self) -> u64 {
        self.lock().ns()
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        machine::sync::lock(&self.0)
    }
}

impl Drop for CountedThread<'_> {
    fn drop(&mut self) {
        let mut counted = self.0.lock();
        *counted = Counted { ended_ns: counted.ns(), running: None };
    }
}

impl Counted {
    fn ns(&self) -> u64 {
        let Some(clock) = self.running else { return self.ended_ns };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call only writes to `time`. The clock's thread has not ended: it clears `running` before it ends.
        match unsafe { libc::clock_gettime(clock, &raw mut time) } {
            0 => self.ended_ns + time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            _ => self.ended_ns,
        }
    }
}

#[derive(Debug)]
pub struct CpuTime {
    vcpus: Vec<ThreadClock>,
    devices: Vec<Arc<ThreadClock>>,
}

impl CpuTime {
    pub fn new(vcpus: u32, devices: Vec<Arc<ThreadClock>>) -> CpuTime {
        CpuTime { vcpus: (0..vcpus).map(|_| ThreadClock::default()).collect(), devices }
    }

    pub fn count_this_thread(&self, id: u32) -> Option<CountedThread<'_>> {
        self.vcpus.get(id as usize)?.count_this_thread()
    }

    /// Returns the CPU time of all vCPU threads.
    pub fn total_ns(&self) -> u64 {
        self.vcpus.iter().map(ThreadClock::ns).sum()
    }

    /// Returns the time charged to the machine's CPU budget: that of vCPU threads and device threads.
    pub fn charged_ns(&self) -> u64 {
        self.total_ns() + self.devices.iter().map(|device| device.ns()).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses CPU time until `clock` reaches `ns`.
    pub(crate) fn run_until(clock: &ThreadClock, ns: u64) {
        let mut sum = 0_u64;
        while clock.ns() < ns {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn thread_time_is_counted_while_it_runs_and_kept_afterwards() {
        let time = CpuTime::new(2, Vec::new());
        assert_eq!(time.total_ns(), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let counted = time.count_this_thread(1).unwrap();
                run_until(&time.vcpus[1], 1_000_000);
                drop(counted);
            });
        });
        assert!(time.total_ns() >= 1_000_000);
        assert!(time.count_this_thread(2).is_none());
    }

    #[test]
    fn thread_clock_sums_consecutive_threads() {
        let clock = ThreadClock::default();
        for turn in 1..=3 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _counted = clock.count_this_thread().unwrap();
                    run_until(&clock, turn * 1_000_000);
                });
            });
            assert!(clock.ns() >= turn * 1_000_000);
        }
    }

    #[test]
    fn device_time_is_charged_but_not_counted_for_vcpus() {
        let device = Arc::new(ThreadClock::default());
        let time = CpuTime::new(1, vec![Arc::clone(&device)]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _counted = device.count_this_thread().unwrap();
                run_until(&device, 1_000_000);
            });
        });
        assert_eq!(time.total_ns(), 0);
        assert!(time.charged_ns() >= 1_000_000);
    }
}
