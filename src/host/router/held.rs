//! The namespaces of a router that was killed: the keepers of its instances' monitors hold them, and by them a new one finds
//! them.
//!
//! A namespace's number is used again when it has gone, and VPCs may have the same addresses. So neither tells whose it is:
//! that is told by the folder of the instance whose keeper holds it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FileType, fstat};

use super::namespace::is_furnished;
use super::{Interface, RouterConfig};
use crate::host::monitor_process::processes;
use crate::unix_socket::SocketPath;

// `linux/if_tun.h`, `linux/nsfs.h`.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
const NS_GET_USERNS: libc::Ioctl = 0xb701;

/// The network namespace of a tap; none if the descriptor is no tap's, or the kernel does not tell.
pub fn namespace_of(network: &OwnedFd) -> Option<OwnedFd> {
    let is_device = fstat(network).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice);
    if !is_device {
        return None;
    }
    let told = descriptor_by(network, TUNGETDEVNETNS);
    told.inspect_err(|error| log::warn!("a router that is killed cannot come back: {error}")).ok()
}

/// The user namespace that a namespace belongs to.
pub(super) fn owner_of(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    descriptor_by(namespace, NS_GET_USERNS)
}

fn descriptor_by(fd: &OwnedFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests have no argument.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just opened it for this process, and nobody else has it.
        new => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
    }
}

/// Who of a VPC is there after its router was killed.
#[derive(Debug, Default)]
pub(super) struct Holders<'a> {
    /// The network namespace that the router is to go on in, if one is held.
    pub namespace: Option<OwnedFd>,
    /// Instances that run and are not in it.
    pub cut_off: Vec<&'a Interface>,
}

/// Looks for them. Of several namespaces, in which a VPC is whose router could once not come back, that which most are in.
pub(super) fn find(config: &RouterConfig) -> io::Result<Holders<'_>> {
    let by_folder: HashMap<&Path, &Interface> =
        config.interfaces.iter().map(|interface| (interface.folder.as_path(), interface)).collect();
    // An instance has two processes, of which one holds it.
    let mut running: HashMap<&Path, Option<u64>> = HashMap::new();
    let mut namespaces: HashMap<u64, (OwnedFd, usize)> = HashMap::new();
    for process in processes(|folder| by_folder.contains_key(folder))? {
        let Some((folder, _)) = by_folder.get_key_value(process.folder.as_path()) else { continue };
        let of = running.entry(folder).or_default();
        // A VMM that was taken over may offer any namespace; its supervisor holds the router's.
        if process.is_supervisor
            && let Some((number, namespace)) = held_by(process.pid.as_raw_nonzero().get())
        {
            *of = Some(number);
            namespaces.entry(number).or_insert((namespace, 0)).1 += 1;
        }
    }
    let mut namespaces: Vec<_> = namespaces.into_iter().collect();
    namespaces.sort_by_key(|(number, (_, holders))| std::cmp::Reverse((*holders, *number)));
    let found = namespaces.into_iter().find(|(_, (namespace, _))| is_furnished(namespace, config));
    let (number, namespace) = found.map(|(number, (namespace, _))| (number, namespace)).unzip();
    let is_cut_off = |of: &Option<u64>| of.is_none() || *of != number;
    let mut cut_off: Vec<_> =
        running.iter().filter(|(_, of)| is_cut_off(of)).map(|(folder, _)| by_folder[folder]).collect();
    cut_off.sort_by_key(|interface| interface.address);
    Ok(Holders { namespace, cut_off })
}

/// The network namespace that a process has a descriptor of, and its number. Of one that may not be looked at, none.
fn held_by(pid: i32) -> Option<(u64, OwnedFd)> {
    fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str().filter(|link| link.starts_with("net:["))?;
        let namespace = File::open(entry.path()).ok()?;
        Some((namespace.metadata().ok()?.ino(), namespace.into()))
    })
}

/// Whether somebody who listened at `socket` was killed. It does not wait for one who stands still.
pub(super) fn is_deserted(socket: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(path) = SocketPath::of(socket) else { return false };
    let short: &Path = path.as_ref();
    let connected = SocketAddrUnix::new(short).and_then(|address| {
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(stream.as_fd(), &address)
    });
    connected == Err(rustix::io::Errno::CONNREFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn what_is_no_tap_has_no_namespace() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(namespace_of(&near.into()).is_none());
        assert!(namespace_of(&File::open("/dev/null").unwrap().into()).is_none());
    }

    #[test]
    fn a_namespace_has_an_owner_and_a_file_has_none() {
        assert!(owner_of(&File::open("/dev/null").unwrap().into()).is_err());
        // That of this process belongs to a namespace above, which it may not be told, or to its own.
        if let Ok(owner) = owner_of(&File::open("/proc/self/ns/net").unwrap().into()) {
            assert_ne!(fstat(owner).unwrap().st_ino, fs::metadata("/proc/self/ns/net").unwrap().ino());
        }
    }

    #[test]
    fn a_socket_is_deserted_when_its_listener_is_gone_and_not_when_it_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        assert!(!is_deserted(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(!is_deserted(&socket));
        drop(listener);
        assert!(is_deserted(&socket));
    }
}
