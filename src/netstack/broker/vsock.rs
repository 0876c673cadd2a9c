//! Connections from the guest to Unix sockets next to its vsock socket.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect as connect_to, sendmsg, socket_with,
};

/// Response codes. A `CONNECTED` message carries the connection.
pub(super) const CONNECTED: u8 = 1;
pub(super) const REFUSED: u8 = 0;

/// Returns the path of the Unix socket for a host port, next to the device's `socket`.
pub(crate) fn path(socket: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(format!("_{port}"));
    path.into()
}

pub(super) fn answer(channel: impl AsFd, path: Option<PathBuf>) {
    let stream = path.and_then(|path| connect(&path).ok());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = stream.iter().map(AsFd::as_fd).collect::<Vec<_>>();
    let fits = passed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&passed));
    let code = [if fits && !passed.is_empty() { CONNECTED } else { REFUSED }];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let Err(error) = sendmsg(channel, &[IoSlice::new(&code)], &mut control, flags) {
        log::warn!("cannot pass a vsock connection to the VMM: {error}");
    }
}

/// Connects to a socket without waiting. Fails if the server's backlog is full.
/// The VMM can write to the directory. Therefore a symbolic link is not followed, and a socket with a second hard
/// link, which may be outside the directory, is refused.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let file = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_nlink != 1 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Connects to the checked file, even if its name now refers to another file.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    connect_to(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn connect_to_full_backlog_fails_without_waiting() {
        use rustix::net::{bind, listen, socket};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v_80");
        let server = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&server, 1).unwrap();
        let clients: Vec<_> = (0..8).map(|_| connect(&path)).collect();
        assert!(clients[0].is_ok());
        assert_eq!(clients[7].as_ref().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(connect(&dir.path().join("v_81")).is_err());
    }

    #[test]
    fn socket_outside_the_directory_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = other.path().join("target");
        let _listener = UnixListener::bind(&target).unwrap();
        connect(&target).unwrap();
        let link = dir.path().join("v_1");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        connect(&link).unwrap_err();
        let hard_link = dir.path().join("v_2");
        std::fs::hard_link(&target, &hard_link).unwrap();
        connect(&hard_link).unwrap_err();
        std::fs::write(dir.path().join("v_3"), "").unwrap();
        connect(&dir.path().join("v_3")).unwrap_err();
    }
}
