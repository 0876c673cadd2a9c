//! Inputs of a machine's start: the snapshot, if any, and the connection to the process that requests the start.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A snapshot to restore from.
#[derive(Debug, Clone)]
pub struct Restore {
    pub dir: PathBuf,
    /// Delete the snapshot before the vCPUs run, so that it is not restored twice.
    pub once: bool,
}

/// The connection to the process that started a machine, subscribed from the start.
#[derive(Debug)]
pub enum Launcher {
    /// An ephemeral machine, which ends when this connection closes.
    Owner(UnixStream),
    /// A machine that outlives the connection.
    Watcher(UnixStream),
    Detached,
}
