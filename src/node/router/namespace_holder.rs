//! Finds the namespaces of a killed router. The supervisors of its instances hold them open for a new router to enter.
//!
//! A namespace is identified by the directory of an instance whose supervisor holds it: the kernel reuses the inode
//! numbers of namespaces, and two VPCs may have the same addresses.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::namespace::is_configured;
use super::{Interface, RouterConfig};
use crate::vmm_process::processes;
use machine::unix_socket::SocketPath;

#[derive(Debug, Default)]
pub(super) struct Holders<'a> {
    pub namespace: Option<OwnedFd>,
    /// Running instances that are not in this namespace.
    pub disconnected: Vec<&'a Interface>,
}

/// Finds the running instances and their namespace. If an earlier router could not be replaced, the VPC may have
/// several namespaces. Chooses the one with the most instances.
pub(super) fn find(config: &RouterConfig) -> io::Result<Holders<'_>> {
    let by_directory: HashMap<&Path, &Interface> =
        config.interfaces.iter().map(|interface| (interface.dir.as_path(), interface)).collect();
    // An instance has two processes, one of which holds the namespace.
    let mut running: HashMap<&Path, Option<u64>> = HashMap::new();
    let mut namespaces: HashMap<u64, (OwnedFd, usize)> = HashMap::new();
    for process in processes(|dir| by_directory.contains_key(dir))? {
        let Some((dir, _)) = by_directory.get_key_value(process.dir.as_path()) else { continue };
        let of = running.entry(dir).or_default();
        // A compromised VMM may hold any namespace open, so only its supervisor's is used.
        if process.is_supervisor
            && let Some((number, namespace)) = held_by(process.pid.as_raw_nonzero().get())
        {
            *of = Some(number);
            namespaces.entry(number).or_insert((namespace, 0)).1 += 1;
        }
    }
    let mut namespaces: Vec<_> = namespaces.into_iter().collect();
    namespaces.sort_by_key(|(number, (_, holders))| std::cmp::Reverse((*holders, *number)));
    let found = namespaces.into_iter().find(|(_, (namespace, _))| is_configured(namespace, config));
    let (number, namespace) = found.map(|(number, (namespace, _))| (number, namespace)).unzip();
    let is_disconnected = |of: &Option<u64>| of.is_none() || *of != number;
    let mut disconnected: Vec<_> =
        running.iter().filter(|(_, of)| is_disconnected(of)).map(|(dir, _)| by_directory[dir]).collect();
    disconnected.sort_by_key(|interface| interface.address);
    Ok(Holders { namespace, disconnected })
}

/// Returns a network namespace that the process has open, with its inode number.
fn held_by(pid: i32) -> Option<(u64, OwnedFd)> {
    fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str().filter(|link| link.starts_with("net:["))?;
        let namespace = File::open(entry.path()).ok()?;
        Some((namespace.metadata().ok()?.ino(), namespace.into()))
    })
}

/// Returns true if `socket` exists but no process is listening on it. Does not block if that process is stopped.
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
    use std::os::unix::net::UnixListener;

    #[test]
    fn socket_is_deserted_after_listener_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        assert!(!is_deserted(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(!is_deserted(&socket));
        drop(listener);
        assert!(is_deserted(&socket));
    }
}
