//! Monitor processes (`wisp vmm`): one for each running instance, started from this very binary.
//!
//! A monitor is in a session of its own, so that a terminal's signals do not reach it; it gets its sockets and its
//! lock as inherited descriptors, and nothing else. Its standard error is `vmm.log` in its folder.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::home::write_private;
use crate::vmm::config::MachineConfig;
use crate::vmm::machine::{Launcher, Restore};
use crate::vmm::sandbox::seccomp;
use crate::vmm::untrusted;

/// The configuration's file name in an instance's folder.
pub const CONFIG: &str = "config.json";
/// The lock's: held by the monitor for as long as it lives.
pub const LOCK: &str = "lock";
/// The log's.
pub const LOG: &str = "vmm.log";
/// The directory of the VMM's own files in an instance's folder: its sockets, its console log, its records and what it
/// saves. The VMM can write there and nowhere else in that folder, so that nothing in there is trusted (see
/// [`untrusted`]).
const VMM_DIRECTORY: &str = "vmm";

/// The directory of the VMM's own files in an instance's folder.
#[must_use]
pub fn vmm_directory(folder: &Path) -> PathBuf {
    folder.join(VMM_DIRECTORY)
}

/// Makes the VMM's directory, unless an earlier start did.
pub fn make_vmm_directory(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(vmm_directory(folder)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes the configuration of the machine in `folder`.
pub fn write_config(folder: &Path, config: &MachineConfig) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(config).expect("a configuration is plain data");
    write_private(&folder.join(CONFIG), &text)
}

/// The configuration of the machine in `folder`.
pub fn read_config(folder: &Path) -> io::Result<MachineConfig> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join(CONFIG))?)?)
}

/// How much of the log is searched for the VMM's last words, in bytes.
const LOG_TAIL: u64 = 64 << 10;

/// What the last monitor in `folder` said of a system call that it may not make, if it was ended for one.
pub fn violation(folder: &Path) -> Option<String> {
    let log = untrusted::read_tail(&folder.join(LOG), LOG_TAIL).ok()?;
    let text = String::from_utf8_lossy(&log);
    text.lines().rev().find(|line| line.starts_with(seccomp::SAYS)).map(String::from)
}

/// What a monitor inherits.
#[derive(Debug)]
pub struct Inherited {
    /// The lock's open file; the lock is the monitor's as soon as it runs.
    pub lock: File,
    /// The monitor's end of the connection of who starts it.
    pub launcher: Launcher,
    /// The monitor's end of the console's terminal.
    pub console: Option<UnixStream>,
    /// What its network device is connected to.
    pub network: Option<OwnedFd>,
}

/// Starts the monitor of the machine in `folder`, which boots or goes on from a saved one. `began_ns` is when the user's
/// command began.
pub fn spawn(folder: &Path, inherited: Inherited, restore: Option<&Restore>, began_ns: u64) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(LOG))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wisp").arg("vmm").arg(folder);
    command.args(["--began-ns", &began_ns.to_string()]);
    if let Some(Restore { folder, once }) = restore {
        command.arg("--restore").arg(folder).args(once.then_some("--once"));
    }
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut pass = |option: &str, fd: OwnedFd| {
        command.args([option, &fd.as_raw_fd().to_string()]);
        kept.push(fd);
    };
    pass("--lock-fd", inherited.lock.into());
    match inherited.launcher {
        Launcher::Owner(stream) => pass("--owner-fd", stream.into()),
        Launcher::Watcher(stream) => pass("--watcher-fd", stream.into()),
        Launcher::Nobody => {}
    }
    if let Some(console) = inherited.console {
        pass("--console-fd", console.into());
    }
    if let Some(network) = inherited.network {
        pass("--network-fd", network);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let numbers: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe; the descriptors
    // are open, since `kept` lives until the child has started.
    unsafe {
        command.pre_exec(move || {
            for number in &numbers {
                let fd = BorrowedFd::borrow_raw(*number);
                fcntl_setfd(fd, fcntl_getfd(fd)? - FdFlags::CLOEXEC)?;
            }
            rustix::process::setsid()?;
            Ok(())
        });
    }
    command.spawn()
}

/// Kills the monitor of the machine in `folder` and its keeper, which both need not do anything for it: what the guest has in
/// its memory is lost. They are found by their command lines; that there is none any more is no error.
pub fn kill(folder: &Path) -> io::Result<()> {
    for (pid, _) in processes(|other| other == folder)? {
        match pidfd_open(pid, PidfdFlags::empty()) {
            // It is still the one, now that it cannot be another any more.
            Ok(fd) if folder_of(pid).is_some_and(|other| other == folder) => {
                pidfd_send_signal(&fd, Signal::KILL).or_else(gone_is_fine)?
            }
            Ok(_) => {}
            Err(error) => gone_is_fine(error)?,
        }
    }
    Ok(())
}

/// The processes of monitors, keepers among them, that are for folders of which `is_one` says so, by their command lines.
pub fn processes(is_one: impl Fn(&Path) -> bool) -> io::Result<Vec<(Pid, PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        all.extend(folder_of(pid).filter(|folder| is_one(folder)).map(|folder| (pid, folder)));
    }
    Ok(all)
}

/// The folder of the machine whose monitor, or keeper, a process is.
fn folder_of(pid: Pid) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip(1);
    (words.next()? == b"vmm").then_some(())?;
    Some(Path::new(OsStr::from_bytes(words.next()?)).to_path_buf())
}

fn gone_is_fine(error: Errno) -> Result<(), Errno> {
    if error == Errno::SRCH { Ok(()) } else { Err(error) }
}

/// Keeps an inherited descriptor from being inherited further.
pub fn close_on_exec(fd: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfd(&fd, fcntl_getfd(&fd)? | FdFlags::CLOEXEC)?)
}

/// Lets a descriptor outlive this process's program; returns its number.
pub fn keep_open(fd: &OwnedFd) -> io::Result<i32> {
    fcntl_setfd(fd, fcntl_getfd(fd)? - FdFlags::CLOEXEC)?;
    Ok(fd.as_raw_fd())
}
