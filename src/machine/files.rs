//! The files of a machine: in its instance directory, and in the VMM's own directory inside that.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::config::MachineConfig;

pub const CONFIG: &str = "config.json";
/// Lock file. The VMM and its supervisor hold the lock while they are running.
pub const LOCK: &str = "lock";
/// The VMM's and the supervisor's messages, which the supervisor writes.
pub const LOG: &str = "vmm.log";
/// Subdirectory for the VMM's own files. The VMM can write there, so nothing in it is trusted (see
/// [`untrusted`](super::untrusted)).
const VMM_DIRECTORY: &str = "vmm";

/// The latest output of the serial console. When the file is full, it is renamed to [`FULL_CONSOLE_LOG`].
pub const CONSOLE_LOG: &str = "console.log";
pub const FULL_CONSOLE_LOG: &str = "console.log.1";
pub const CONSOLE_SOCKET: &str = "console.sock";
/// A guest's connection to a port of the host goes to the Unix socket `<socket>_<port>`, if that exists.
pub const VSOCK_SOCKET: &str = "vsock.sock";

#[must_use]
pub fn vmm_directory(dir: &Path) -> PathBuf {
    dir.join(VMM_DIRECTORY)
}

/// Creates the VMM's directory, unless it exists.
pub fn make_vmm_directory(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(vmm_directory(dir)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

pub fn read_config(dir: &Path) -> io::Result<MachineConfig> {
    Ok(serde_json::from_slice(&std::fs::read(dir.join(CONFIG))?)?)
}
