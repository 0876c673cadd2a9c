//! Requests to rtnetlink(7): several in one message, each with its attributes.
//!
//! One system call makes several changes to an interface, and the kernel announces no intermediate state. Under
//! software KVM, each call that netdevice(7) would need takes milliseconds.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Size of `struct nlmsghdr` (netlink(7)): length, type, flags, sequence number, sender.
const HEADER: usize = 16;
/// Alignment of all parts in bytes.
const ALIGNMENT: usize = 4;

#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    count: usize,
}

#[derive(Debug)]
pub struct NetlinkRequest<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
}

impl Requests {
    /// Adds a request of a `kind` (`RTM_...`), with `flags` (`NLM_F_...`) and the `body` of that kind.
    pub fn add(&mut self, kind: u16, flags: libc::c_int, body: &[u8]) -> NetlinkRequest<'_> {
        let start = self.bytes.len();
        let flags = flags as u16 | libc::NLM_F_REQUEST as u16;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&(self.count as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(body);
        self.count += 1;
        let mut request = NetlinkRequest { bytes: &mut self.bytes, start };
        request.end();
        request
    }

    /// Sends the requests and waits until the kernel has processed them. Returns the first error, after all were tried.
    pub fn send(self) -> io::Result<()> {
        // Protocol 0 of these sockets is `NETLINK_ROUTE`.
        let socket: OwnedFd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        send(&socket, &self.bytes, SendFlags::empty())?;
        // The kernel processes all requests during the send, and only answers on errors.
        let mut answer = [0; 512];
        match recv(&socket, &mut answer[..], RecvFlags::DONTWAIT) {
            Ok((count, _)) => refusal(&answer[..count]).map_or(Ok(()), Err),
            Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Returns the error in the kernel's first answer: a `struct nlmsgerr` after the header, with a negative error number.
fn refusal(answer: &[u8]) -> Option<io::Error> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let error = i32::from_ne_bytes(*answer.get(HEADER..)?.first_chunk()?);
    (i32::from(kind) == libc::NLMSG_ERROR && error != 0).then(|| io::Error::from_raw_os_error(-error))
}

impl NetlinkRequest<'_> {
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // `struct rtattr` (rtnetlink(7)): length, type, value. The next one is aligned.
        let length = (ALIGNMENT + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self.end();
        self
    }

    fn end(&mut self) {
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_attributes_are_aligned_with_lengths() {
        let mut requests = Requests::default();
        requests.add(16, 0, &[7; 16]).attribute(3, b"eth0\0").attribute(1, &[9; 6]);
        requests.add(24, libc::NLM_F_CREATE, &[0; 12]);
        let bytes = &requests.bytes;
        assert_eq!(bytes.len(), (16 + 16 + 12 + 12) + (16 + 12));
        assert_eq!((&bytes[..4], &bytes[56..60]), (&56_u32.to_ne_bytes()[..], &28_u32.to_ne_bytes()[..]));
        assert_eq!(&bytes[32..44], &[&9_u16.to_ne_bytes()[..], &3_u16.to_ne_bytes(), b"eth0\0\0\0\0"].concat());
        assert_eq!(&bytes[62..64], &((libc::NLM_F_CREATE | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    }

    #[test]
    fn kernel_refusal_is_an_error() {
        // Loopback has no such address to remove. Without privileges, the kernel refuses the request itself.
        let mut requests = Requests::default();
        let body = [&[libc::AF_INET as u8, 8, 0, 0][..], &1_u32.to_ne_bytes()].concat();
        requests.add(libc::RTM_DELADDR, 0, &body).attribute(libc::IFA_LOCAL, &[127, 9, 8, 7]);
        let error = requests.send().unwrap_err().raw_os_error();
        assert!(matches!(error, Some(libc::EADDRNOTAVAIL | libc::EPERM)), "{error:?}");
        assert!(refusal(&[0; 3]).is_none() && refusal(&[0; 64]).is_none());
    }
}
