//! The agent's listening vsock socket.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{AGENT_PORT, PRIVILEGED_PORTS};

const BACKLOG: i32 = 64;

/// A listening vsock socket that accepts connections only from the host. Through vsock's loopback transport, any user
/// of the guest could otherwise have the agent run commands as root.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Listens on [`AGENT_PORT`]. Fails with `EAFNOSUPPORT` without vsock and `EADDRINUSE` if an agent is running.
    pub fn bind() -> io::Result<Self> {
        let socket = new_socket()?;
        bind(&socket, AGENT_PORT)?;
        // SAFETY: a call without pointers.
        check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
        Ok(Self { socket })
    }

    /// Waits for a connection. Returns `None` if it is not from the host or was already closed.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: all zeroes is a valid address.
        let mut address: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        // SAFETY: `address` has room for `length` bytes.
        let fd = unsafe {
            libc::accept4(self.socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length, libc::SOCK_CLOEXEC)
        };
        match check(fd) {
            Ok(fd) => {
                // SAFETY: the descriptor is new and has no other owner.
                let connection = unsafe { OwnedFd::from_raw_fd(fd) };
                Ok((address.svm_cid == libc::VMADDR_CID_HOST).then_some(connection))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED | libc::ECONNRESET)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Connects to a vsock port of the host, from a privileged port of the guest. Fails with `ECONNRESET` if the host does
/// not serve the port, and with `EACCES` if this process must not bind a privileged port.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    bind_privileged(&socket)?;
    let address = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address is a whole `sockaddr_vm`, and its length is given.
    check(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// Binds the socket to the highest free privileged port.
fn bind_privileged(socket: &OwnedFd) -> io::Result<()> {
    for port in PRIVILEGED_PORTS.rev() {
        match bind(socket, port) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            bound => return bound,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
}

fn bind(socket: &OwnedFd, port: u32) -> io::Result<()> {
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is a whole `sockaddr_vm`, and its length is given.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as libc::socklen_t)
    })?;
    Ok(())
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: a call without pointers.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

impl AsFd for Listener {
    /// Returns a descriptor that is readable when a connection is waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn check(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
