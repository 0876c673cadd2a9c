//! `poll(2)` with types: a slot that is `None` is not waited for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// What to wait for on a descriptor. A hang-up or an error counts as either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Until it can be read.
    Read,
    /// Until it can be written.
    Write,
    /// Until either.
    Both,
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// Reading it would not block (it may report an end or an error).
    pub read: bool,
    /// Writing to it would not block (it may report an error).
    pub write: bool,
}

/// Waits until one of the descriptors is ready, or for `timeout` (`None`: for ever; zero: only looks).
///
/// The answer has a place for each slot; all are empty where the time ran out.
///
/// # Errors
/// What `poll(2)` reports, but for an interruption by a signal, after which it waits on (with the
/// whole time-out again, which callers here don't mind).
pub fn poll<const N: usize>(
    slots: [Option<(BorrowedFd<'_>, Interest)>; N],
    timeout: Option<Duration>,
) -> io::Result<[Ready; N]> {
    let mut raw = slots.map(|slot| match slot {
        // A negative descriptor is passed over.
        None => libc::pollfd { fd: -1, events: 0, revents: 0 },
        Some((fd, interest)) => libc::pollfd { fd: fd.as_raw_fd(), events: events(interest), revents: 0 },
    });
    // Rounded up, so that a wait never ends just before its time.
    let timeout = timeout.map_or(-1, |timeout| i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    loop {
        // SAFETY: `raw` is an array of N `pollfd`, which outlives the call.
        if unsafe { libc::poll(raw.as_mut_ptr(), N as libc::nfds_t, timeout) } >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(raw.map(|slot| {
        let ended = slot.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0;
        Ready { read: ended || slot.revents & libc::POLLIN != 0, write: ended || slot.revents & libc::POLLOUT != 0 }
    }))
}

fn events(interest: Interest) -> libc::c_short {
    match interest {
        Interest::Read => libc::POLLIN,
        Interest::Write => libc::POLLOUT,
        Interest::Both => libc::POLLIN | libc::POLLOUT,
    }
}
