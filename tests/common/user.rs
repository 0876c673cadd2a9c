//! An unprivileged user for tests that run as root, with access to the devices that distributions open to users.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::DEADLINE;
use super::wait::has_ended_before;

/// An environment variable that describes the user to the test process inside the namespace.
const NAME: &str = "WISP_TEST_USER";

/// A user of the host. Drop kills its processes and removes it, if this process has created it.
pub struct User {
    name: String,
    uid: u32,
    dir: PathBuf,
    /// The user's home and a copy of the binary, whose original may be on a path that only root can search.
    owned_dir: Option<tempfile::TempDir>,
}

impl User {
    /// Creates a user. Returns `None` without root privileges.
    pub fn create() -> Option<User> {
        if !geteuid().is_root() {
            return None;
        }
        let made = tempfile::tempdir().unwrap();
        let name = format!("wisp-test-{}", std::process::id());
        std::fs::set_permissions(made.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_wisp"), made.path().join("wisp")).unwrap();
        let mut useradd = Command::new("useradd");
        useradd.args(["--create-home", "--no-log-init", "--shell", "/bin/sh", "--base-dir"]).arg(made.path());
        assert!(useradd.arg(&name).status().unwrap().success(), "useradd {name}");
        Some(User { uid: id(&name), name, dir: made.path().to_path_buf(), owned_dir: Some(made) })
    }

    /// Returns the user that the test process outside the namespace has created.
    pub fn inside() -> User {
        let value = std::env::var(NAME).unwrap();
        let (name, dir) = value.split_once(':').unwrap();
        User { uid: id(name), name: name.into(), dir: dir.into(), owned_dir: None }
    }

    /// Returns the environment variable that passes the user to a process in a namespace.
    pub fn environment(&self) -> (&'static str, String) {
        (NAME, format!("{}:{}", self.name, self.dir.display()))
    }

    pub fn uid(&self) -> u32 {
        self.uid
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let home = self.dir.join(&self.name);
        // std drops root's groups when it sets the uid.
        command.uid(self.uid).gid(self.uid).current_dir(&home).env_clear();
        command.env("HOME", home).env("USER", &self.name).env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command
    }

    pub fn wisp(&self) -> Command {
        self.command(self.dir.join("wisp").to_str().unwrap())
    }

    /// Returns the user's processes, except zombies.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let process = |dir: &Path| {
            let status = std::fs::read_to_string(dir.join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let is_ours = field("Uid:").split('\t').any(|uid| uid == self.uid.to_string());
            let pid = Pid::from_raw(field("Pid:").parse().ok()?)?;
            (is_ours && !field("State:").starts_with('Z')).then(|| (pid, field("Name:").to_string()))
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| process(&entry.path())).collect()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.owned_dir.is_none() {
            return;
        }
        let deadline = Instant::now() + DEADLINE;
        while !self.processes().is_empty() && Instant::now() < deadline {
            for (pid, _) in self.processes() {
                let _ = kill_process(pid, Signal::KILL);
                has_ended_before(pid.as_raw_nonzero().get(), deadline);
            }
        }
        // userdel also reports harmless problems, such as a missing home directory.
        let _ = Command::new("userdel").args(["--remove", &self.name]).stderr(Stdio::null()).status();
    }
}

fn id(name: &str) -> u32 {
    let output = Command::new("id").args(["-u", name]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Devices whose modes allow access by all users. Drop restores the original modes.
pub struct OpenDevices {
    modes: Vec<(&'static str, u32)>,
    /// Serializes tests, so that no test saves modes that another test has set.
    _lock: File,
}

impl OpenDevices {
    pub fn new(paths: &[&'static str]) -> OpenDevices {
        let lock = File::open("/dev").unwrap();
        lock.lock().unwrap();
        let mode = |path: &&'static str| (*path, std::fs::metadata(path).unwrap().permissions().mode());
        let modes = paths.iter().map(mode).collect();
        for path in paths {
            std::fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
        }
        OpenDevices { modes, _lock: lock }
    }
}

impl Drop for OpenDevices {
    fn drop(&mut self) {
        for (path, mode) in &self.modes {
            let _ = std::fs::set_permissions(path, Permissions::from_mode(mode & 0o7777));
        }
    }
}
