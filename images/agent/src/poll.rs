//! A typed `poll(2)`. Slots that are `None` are ignored.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Events to wait for on a descriptor. Each includes hang-ups and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
    Both,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// Reading would not block, but may report the end of the file or an error.
    pub read: bool,
    pub write: bool,
}

/// Waits until a descriptor is ready or `timeout` expires (`None`: no limit; zero: do not wait). Returns an entry for
/// each slot, none of them ready after a timeout. After a signal the wait restarts with the whole timeout.
pub fn poll<const N: usize>(
    slots: [Option<(BorrowedFd<'_>, Interest)>; N],
    timeout: Option<Duration>,
) -> io::Result<[Ready; N]> {
    let mut raw = slots.map(|slot| match slot {
        // `poll(2)` ignores negative descriptors.
        None => libc::pollfd { fd: -1, events: 0, revents: 0 },
        Some((fd, interest)) => libc::pollfd { fd: fd.as_raw_fd(), events: events(interest), revents: 0 },
    });
    // Rounded up, so that a wait never ends before its deadline.
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
