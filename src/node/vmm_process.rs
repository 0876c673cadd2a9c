//! VMM processes (`wisp vmm`), one for each running instance.
//!
//! A VMM process has its own session, so signals from a terminal do not reach it. It inherits only its sockets and its
//! lock. Its standard error is a pipe to its supervisor, which writes `vmm.log`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::home::write_private;
use machine::bounded_log;
use machine::config::MachineConfig;
use machine::environment;
use machine::files::{CONFIG, LOCK, LOG};
use machine::launch::{Launcher, Restore};
use machine::sandbox_record::violation;

pub fn write_config(dir: &Path, config: &MachineConfig) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(config).expect("a machine configuration can be serialized");
    write_private(&dir.join(CONFIG), &text)
}

const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(5);

/// Like [`violation`], but first waits up to `SUPERVISOR_TIMEOUT` for the supervisor to complete the log and exit.
pub fn last_violation(dir: &Path) -> Option<String> {
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    for process in processes(|other| other == dir).ok()? {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // Ignore a timeout: the supervisor may be stopped or may be restarting its guest.
        let _ = poll(&mut [PollFd::new(&process.fd, PollFlags::IN)], Some(&left));
    }
    violation(dir)
}

#[derive(Debug)]
pub struct Inherited {
    /// Locked lock file. The new process inherits the lock.
    pub lock: File,
    /// The VMM's end of the connection to the process that starts it.
    pub launcher: Launcher,
    pub console: Option<UnixStream>,
    pub network: Option<OwnedFd>,
}

/// The state from which a machine starts.
#[derive(Debug)]
pub enum StartFrom<'a> {
    Boot,
    /// A boot without the instance's identity, which the guest gets after it was saved as a template.
    TemplateBoot,
    Snapshot(&'a Restore),
}

/// Starts the supervisor, whose VMM starts the machine. `began_ns` is the start time of the user's command.
pub fn spawn(dir: &Path, inherited: Inherited, from: StartFrom, began_ns: u64) -> io::Result<Child> {
    // Empty the log, so that an earlier VMM's messages are not attributed to the new one.
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOG))?;
    log.set_len(0)?;
    machine::fs::remove_if_exists(&bounded_log::full(&dir.join(LOG)))?;
    let mut command = Command::new("/proc/self/exe");
    environment::restrict(&mut command);
    command.arg0("wisp").arg("vmm").arg(dir);
    command.args(["--began-ns", &began_ns.to_string()]);
    match from {
        StartFrom::Boot => {}
        StartFrom::TemplateBoot => drop(command.arg("--template")),
        StartFrom::Snapshot(Restore { dir, once }) => {
            command.arg("--restore").arg(dir).args(once.then_some("--once"));
        }
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
        Launcher::Detached => {}
    }
    if let Some(console) = inherited.console {
        pass("--console-fd", console.into());
    }
    if let Some(network) = inherited.network {
        pass("--network-fd", network);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let numbers: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe. The descriptors
    // are open, because `kept` lives until the child has started.
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

/// Kills the VMM and its supervisor, if running. Guest memory is lost. Tries both, and returns the first error.
pub fn kill(dir: &Path) -> io::Result<()> {
    let mut failure = None;
    for process in processes(|other| other == dir)? {
        if let Err(error) = pidfd_send_signal(&process.fd, Signal::KILL).or_else(ignore_missing_process) {
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

#[derive(Debug)]
pub struct VmmProcess {
    /// Process ID. The kernel may reuse it once this process has exited.
    pub pid: Pid,
    /// A pidfd, which always refers to this process.
    fd: OwnedFd,
    pub dir: PathBuf,
    /// False for the VMM that the supervisor started.
    pub is_supervisor: bool,
}

/// Returns the VMMs and supervisors of the instances whose directories satisfy `is_one`. Command-line arguments only
/// select candidates, because any process can set its own. A candidate must belong to this user and have the instance's
/// lock file open, which other users cannot open. The executable is not checked, because its version may differ.
pub fn processes(is_one: impl Fn(&Path) -> bool) -> io::Result<Vec<VmmProcess>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| instance_directory(*pid).is_some_and(|dir| is_one(&dir))) else { continue };
        // Check again with the pidfd open: before that, another process may have taken over the PID.
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Some(dir) = instance_directory(pid).filter(|dir| is_one(dir)) else { continue };
        let Some(identity) = Identity::of(pid).filter(|identity| identity.user == geteuid().as_raw()) else { continue };
        if has_open(pid, &dir.join(LOCK)) {
            let is_supervisor = Identity::of_self().is_some_and(|own| own.namespaces == identity.namespaces);
            all.push(VmmProcess { pid, fd, dir, is_supervisor });
        }
    }
    Ok(all)
}

/// Returns the instance's directory from the arguments of a VMM process.
fn instance_directory(pid: Pid) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip(1);
    (words.next()? == b"vmm").then_some(())?;
    Some(Path::new(OsStr::from_bytes(words.next()?)).to_path_buf())
}

/// Information from `/proc/PID/status`.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    user: u32,
    /// Nesting depth of the process's PID namespace, counted from the namespace of `/proc`.
    namespaces: usize,
}

impl Identity {
    fn of(pid: Pid) -> Option<Identity> {
        Identity::parse(&fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?)
    }

    fn of_self() -> Option<Identity> {
        Identity::parse(&fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Identity> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let user = field("Uid")?.split_whitespace().nth(1)?.parse().ok()?;
        // Kernels without PID namespaces lack the field.
        Some(Identity { user, namespaces: field("NSpid").map_or(1, |pids| pids.split_whitespace().count()) })
    }
}

fn has_open(pid: Pid, path: &Path) -> bool {
    let Ok(wanted) = path.symlink_metadata() else { return false };
    let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else { return false };
    let is_it = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == (wanted.dev(), wanted.ino());
    descriptors.flatten().any(|descriptor| fs::metadata(descriptor.path()).is_ok_and(is_it))
}

fn ignore_missing_process(error: Errno) -> Result<(), Errno> {
    if error == Errno::SRCH { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    struct Lookalike(Child);

    impl Lookalike {
        /// Starts a shell with a VMM's arguments, which runs a script named `vmm`. Waits until the script is running.
        fn start(dir: &Path, script: &str, user: Option<u32>) -> Lookalike {
            let scripts = tempfile::tempdir().unwrap();
            fs::set_permissions(scripts.path(), fs::Permissions::from_mode(0o755)).unwrap();
            fs::write(scripts.path().join("vmm"), format!("{script}\necho up\nread _\n")).unwrap();
            let mut command = Command::new("sh");
            command.arg0("wisp").arg("vmm").arg(dir).current_dir(scripts.path());
            if let Some(user) = user {
                command.uid(user);
            }
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut up = [0; 3];
            child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
            Lookalike(child)
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Lookalike {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn found(dir: &Path) -> Vec<i32> {
        let processes = processes(|other| other == dir).unwrap();
        assert!(processes.iter().all(|process| process.is_supervisor && process.dir == dir));
        processes.iter().map(|process| process.pid.as_raw_nonzero().get()).collect()
    }

    #[test]
    fn process_without_the_lock_is_not_found_or_killed() {
        const OPENS_LOCK: &str = "exec 3< \"$1/lock\"";
        const NOBODY: u32 = 65534;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        let mut decoy = Lookalike::start(dir.path(), ":", None);
        let mut real = Lookalike::start(dir.path(), OPENS_LOCK, None);
        // In a data directory, other users cannot open the lock. Here they can, but must still not be found.
        let mut other = geteuid().is_root().then(|| Lookalike::start(dir.path(), OPENS_LOCK, Some(NOBODY)));
        assert_eq!(found(dir.path()), [real.pid()]);
        assert!(found(Path::new("/nowhere")).is_empty());

        kill(dir.path()).unwrap();
        assert!(real.0.wait().unwrap().signal() == Some(libc::SIGKILL));
        assert!(decoy.0.try_wait().unwrap().is_none());
        assert!(other.as_mut().is_none_or(|other| other.0.try_wait().unwrap().is_none()));
        assert!(found(dir.path()).is_empty());
        kill(dir.path()).unwrap();
    }

    #[test]
    fn identity_is_parsed_from_status() {
        let status = "Name:\tx\nUid:\t0\t1000\t0\t0\nNSpid:\t77\t1\n";
        assert_eq!(Identity::parse(status), Some(Identity { user: 1000, namespaces: 2 }));
        assert_eq!(Identity::parse("Uid:\t5\t6\t7\t8\n"), Some(Identity { user: 6, namespaces: 1 }));
        assert_eq!(Identity::parse("Name:\tUid: 0\n"), None);
    }
}
