//! A monitor's keeper: the process that starts it, waits for it, and puts things in order when it has ended.
//!
//! A monitor has given up what it would need for that: it cannot execute itself anew when its guest reboots, nor remove its
//! own folder. The keeper holds the lock with the monitor, passes on the signals that end a machine, and ends with its monitor,
//! as that does with it. It opens sockets of the host for the monitor ([`broker`](crate::vmm::broker)).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use crate::vmm::broker::Broker;

/// Signals that end a machine.
const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals that a keeper waits for; blocked, so that none is lost.
#[derive(Debug)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them, before the monitor is there.
    pub fn block() -> io::Result<Signals> {
        // SAFETY: `set` is initialised by sigemptyset before it is used.
        let (set, error) = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in END_SIGNALS.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(&raw mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            (set, error)
        };
        if error == 0 { Ok(Signals(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Lets them come again, in the monitor and in a keeper that executes itself anew.
    pub fn unblock(&self) {
        // SAFETY: the set is initialised; that it cannot fail with these arguments, pthread_sigmask(3) says.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) };
    }

    /// Waits until the monitor has ended, passing signals on to it and serving `broker`; returns how it did.
    pub fn wait(&self, monitor: Pid, broker: &mut Broker) -> io::Result<WaitStatus> {
        let signals = self.descriptor()?;
        loop {
            if let Some((_, status)) = waitpid(Some(monitor), WaitOptions::NOHANG)?
                && (status.exited() || status.signaled())
            {
                return Ok(status);
            }
            let mut ready =
                [PollFd::new(&signals, PollFlags::IN), PollFd::from_borrowed_fd(broker.events(), PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let has_request = !ready[1].revents().is_empty();
            for signal in read_signals(&signals).filter(|signal| *signal != libc::SIGCHLD) {
                // SAFETY: the monitor has not been waited for, so that its id is its own.
                unsafe { libc::kill(monitor.as_raw_nonzero().get(), signal) };
            }
            if has_request {
                broker.serve();
            }
        }
    }

    /// A descriptor from which the signals can be read.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the set is initialised, and the descriptor is new: nobody else owns it.
        unsafe {
            match libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        }
    }
}

/// The numbers of the signals that have come.
fn read_signals(descriptor: &OwnedFd) -> impl Iterator<Item = i32> {
    std::iter::from_fn(move || {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(descriptor, &mut record) {
            // The number is the record's first field.
            Ok(length) if length == record.len() => {
                Some(i32::from_ne_bytes([record[0], record[1], record[2], record[3]]))
            }
            _ => None,
        }
    })
}
