//! A tap device of the host (`Documentation/networking/tuntap.rst`). The kernel implements the offloads.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::frame::{Received, Sent};
use super::header::{self, Header};
use crate::virtio::iovec::IoVecs;

// From `linux/if_tun.h`.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO_ECN: libc::c_ulong = 8;

#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Wraps `fd`, which must be attached to a tap device, and sets the length of its frame header.
    pub fn new(fd: OwnedFd) -> io::Result<Tap> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        let length = header::LENGTH as libc::c_int;
        // SAFETY: the kernel reads an int at the pointer, which is valid for the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Tap { fd })
    }

    /// Wraps a socket that delivers frames in the same format.
    #[cfg(test)]
    pub fn for_test(fd: OwnedFd) -> Tap {
        Tap { fd }
    }

    /// Sets the offloads that the kernel may leave to the guest.
    pub fn set_offloads(&self, checksum: bool, segmentation: bool, ecn: bool) -> io::Result<()> {
        let choose = |wanted: bool, flag| if wanted { flag } else { 0 };
        // The kernel accepts TSO only together with checksum offload.
        let flags = choose(checksum, TUN_F_CSUM)
            | choose(checksum && segmentation, TUN_F_TSO4)
            | choose(checksum && segmentation && ecn, TUN_F_TSO_ECN);
        // SAFETY: the request takes its argument by value.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub fn send(&self, header: &Header, frame: &IoVecs) -> Sent {
        let mut all = Vec::with_capacity(frame.as_slice().len() + 1);
        all.push(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() });
        all.extend_from_slice(frame.as_slice());
        // SAFETY: the pieces are valid for the call, as `IoVecs` promises, and are only read.
        let count = unsafe { libc::writev(self.fd.as_raw_fd(), all.as_ptr(), all.len() as libc::c_int) };
        match count {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Sent::Full,
            // For example, the header does not match the frame, or the interface is down.
            -1 => Sent::Refused,
            _ => Sent::Done,
        }
    }

    pub fn receive(&self, header: &mut Header, target: &IoVecs) -> Received {
        let mut all = Vec::with_capacity(target.as_slice().len() + 1);
        all.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
        all.extend_from_slice(target.as_slice());
        // SAFETY: the pieces are valid for the call and may be written to, as `IoVecs` promises for targets.
        let count = unsafe { libc::readv(self.fd.as_raw_fd(), all.as_ptr(), all.len() as libc::c_int) };
        match usize::try_from(count) {
            Ok(count) => match count.checked_sub(header.len()) {
                Some(length) => Received::Frame { length },
                None => Received::Nothing,
            },
            Err(_) => match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Received::Nothing,
                error => {
                    log::warn!("reading from the tap device failed: {error}");
                    Received::Closed
                }
            },
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
