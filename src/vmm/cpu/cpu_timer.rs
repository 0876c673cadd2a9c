//! A timer on the CPU time of a thread or of the process, which signals the thread that created it.

use std::io;
use std::ptr;

/// Dropping the timer stops its signals. A timer must stay on the thread that created it, which gets the signals.
#[derive(Debug)]
pub struct CpuTimer {
    timer: libc::timer_t,
}

impl CpuTimer {
    /// Creates a disarmed timer on the calling thread's CPU time, which sends that thread `signal` when it expires.
    pub fn of_thread(signal: libc::c_int) -> io::Result<CpuTimer> {
        CpuTimer::on(libc::CLOCK_THREAD_CPUTIME_ID, signal)
    }

    /// Creates a disarmed timer on the process's CPU time, which sends the calling thread `signal` when it expires.
    pub fn of_process(signal: libc::c_int) -> io::Result<CpuTimer> {
        CpuTimer::on(libc::CLOCK_PROCESS_CPUTIME_ID, signal)
    }

    fn on(clock: libc::clockid_t, signal: libc::c_int) -> io::Result<CpuTimer> {
        // SAFETY: all zeroes is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: the call has no arguments and cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: the kernel only reads the event and writes the timer's ID.
        match unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) } {
            0 => Ok(CpuTimer { timer }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Arms the timer to expire once, after `ns` of CPU time. Replaces an earlier setting.
    pub fn set(&self, ns: u64) -> io::Result<()> {
        self.set_with(ns, 0)
    }

    /// Arms the timer to expire after every `ns` of CPU time.
    pub fn set_each(&self, ns: u64) -> io::Result<()> {
        self.set_with(ns, ns)
    }

    fn set_with(&self, first_ns: u64, each_ns: u64) -> io::Result<()> {
        let second = 1_000_000_000;
        let time = |ns: u64| libc::timespec { tv_sec: (ns / second) as i64, tv_nsec: (ns % second) as i64 };
        // Zero would disarm the timer.
        let value = libc::itimerspec { it_interval: time(each_ns), it_value: time(first_ns.max(1)) };
        // SAFETY: the timer exists as long as `self`; the kernel only reads the value.
        match unsafe { libc::timer_settime(self.timer, 0, &raw const value, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for CpuTimer {
    fn drop(&mut self) {
        // SAFETY: `self` owns the timer, and nothing uses it afterwards.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    static SIGNALS: AtomicU32 = AtomicU32::new(0);

    extern "C" fn count(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        SIGNALS.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn timer_expires_once_by_thread_cpu_time() {
        let signal = libc::SIGRTMIN() + 3;
        vmm_sys_util::signal::register_signal_handler(signal, count).unwrap();
        let timer = CpuTimer::of_thread(signal).unwrap();
        timer.set(5_000_000).unwrap();
        let mut sum = 0_u64;
        while SIGNALS.load(Ordering::SeqCst) == 0 {
            sum = std::hint::black_box(sum + 1);
        }
        assert_eq!(SIGNALS.load(Ordering::SeqCst), 1, "once");
    }
}
