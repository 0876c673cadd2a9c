//! A timer on the CPU time of the thread that made it: it runs while the thread does, and signals that thread.

use std::io;
use std::ptr;

/// The timer; its signals end with it. It stays in its thread.
#[derive(Debug)]
pub struct ThreadTimer {
    timer: libc::timer_t,
}

impl ThreadTimer {
    /// A timer of the calling thread, which gets `signal` when it expires; it is not set.
    pub fn new(signal: libc::c_int) -> io::Result<ThreadTimer> {
        // SAFETY: all bytes zero is a sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: it has no arguments and cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: the event is read and the timer's id written, no more.
        match unsafe { libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut event, &raw mut timer) } {
            0 => Ok(ThreadTimer { timer }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has it expire once, after `ns` of the thread's CPU time, and not at the time that was set before.
    pub fn set(&self, ns: u64) -> io::Result<()> {
        let second = 1_000_000_000;
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would be never.
        let ns = ns.max(1);
        let it_value = libc::timespec { tv_sec: (ns / second) as i64, tv_nsec: (ns % second) as i64 };
        let value = libc::itimerspec { it_interval: never, it_value };
        // SAFETY: the timer is there for as long as this is; the value is read, no more.
        match unsafe { libc::timer_settime(self.timer, 0, &raw const value, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is this one's own, and nobody uses it any more.
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
    fn it_expires_by_the_thread_s_own_time() {
        let signal = libc::SIGRTMIN() + 3;
        vmm_sys_util::signal::register_signal_handler(signal, count).unwrap();
        let timer = ThreadTimer::new(signal).unwrap();
        timer.set(5_000_000).unwrap();
        let mut sum = 0_u64;
        while SIGNALS.load(Ordering::SeqCst) == 0 {
            sum = std::hint::black_box(sum + 1);
        }
        assert_eq!(SIGNALS.load(Ordering::SeqCst), 1, "once");
    }
}
