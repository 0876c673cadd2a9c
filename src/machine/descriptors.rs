//! File descriptors that a process passes to the programs that it executes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes ownership of an inherited descriptor, and sets close-on-exec.
pub fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD only reads the descriptor's flags.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(io::Error::other(format!("descriptor {fd} was not inherited")));
    }
    // SAFETY: it is open, as was just checked, and the parent process passed it to this process alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    close_on_exec(&fd)?;
    Ok(fd)
}

fn close_on_exec(fd: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfd(&fd, fcntl_getfd(&fd)? | FdFlags::CLOEXEC)?)
}

/// Clears close-on-exec and returns the descriptor's number.
pub fn keep_open(fd: &OwnedFd) -> io::Result<RawFd> {
    fcntl_setfd(fd, fcntl_getfd(fd)? - FdFlags::CLOEXEC)?;
    Ok(fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn inherited_descriptor_is_closed_on_exec_until_kept_open() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = OwnedFd::from(near);
        let number = keep_open(&near).unwrap();
        assert!(!fcntl_getfd(&near).unwrap().contains(FdFlags::CLOEXEC));
        let inherited = inherit(near.into_raw_fd()).unwrap();
        assert_eq!(inherited.as_raw_fd(), number);
        assert!(fcntl_getfd(&inherited).unwrap().contains(FdFlags::CLOEXEC));
    }

    #[test]
    fn standard_stream_or_closed_descriptor_is_refused() {
        for fd in [-1, 0, 2, RawFd::MAX] {
            assert_eq!(inherit(fd).unwrap_err().to_string(), format!("descriptor {fd} was not inherited"));
        }
    }
}
