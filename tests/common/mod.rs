//! Helpers for tests that boot guests. Nothing here sleeps, and everything that a test starts ends with the test.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod api;
pub mod instances;
pub mod machines;
pub mod namespace;
pub mod slots;
mod template;
pub mod user;
pub mod wait;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub use wait::wait_until_gone;

/// Longer than any step of a test takes under software KVM while two other guests are running.
pub const DEADLINE: Duration = Duration::from_secs(300);

pub struct Wisp {
    home: tempfile::TempDir,
    is_warm: bool,
    /// The user that runs the binary. `None` is the current user.
    user: Option<user::User>,
}

#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Wisp {
    pub fn new() -> Wisp {
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            panic!("this test boots a guest, but /dev/kvm cannot be opened: {error} (see `wisp doctor`)");
        }
        Wisp::without_kvm()
    }

    pub fn without_kvm() -> Wisp {
        Wisp { home: tempfile::tempdir().expect("a temporary directory"), is_warm: false, user: None }
    }

    /// Uses a data directory whose path has spaces and non-ASCII letters, and does not fit in a socket address.
    pub fn in_long_home() -> Wisp {
        let mut wisp = Wisp::new();
        let prefix = "data directory ünïcödé 数据 ".repeat(6);
        wisp.home = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary directory");
        assert!(wisp.home().as_os_str().len() > 150);
        wisp
    }

    pub fn warm_in_long_home() -> Wisp {
        let mut wisp = Wisp::in_long_home();
        wisp.is_warm = true;
        template::copy_to(wisp.home());
        wisp
    }

    /// Enables templates without creating any.
    pub fn warmable() -> Wisp {
        let mut wisp = Wisp::new();
        wisp.is_warm = true;
        wisp
    }

    /// Copies templates for [`instances::SMALL`], `wisp run` and `wisp launch`, for tests that need no cold boot.
    pub fn warm() -> Wisp {
        let wisp = Wisp::warmable();
        template::copy_to(wisp.home());
        wisp
    }

    pub fn of(user: user::User) -> Wisp {
        let mut wisp = Wisp::warmable();
        std::os::unix::fs::chown(wisp.home(), Some(user.uid()), Some(user.uid())).unwrap();
        wisp.user = Some(user);
        wisp
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn user(&self) -> &user::User {
        self.user.as_ref().expect("wisp runs as another user")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let own = || Command::new(env!("CARGO_BIN_EXE_wisp"));
        let mut command = self.user.as_ref().map_or_else(own, user::User::wisp);
        // A limit of 0 disables templates, so that guests cold-boot.
        let limit = if self.is_warm { "4096" } else { "0" };
        command.args(args).env("WISP_HOME", self.home()).env("WISP_WARM_LIMIT", limit).env_remove("WISP_LOG");
        command
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut running = self.start(args);
        let mut stdin = running.stdin.take().expect("standard input is a pipe");
        let input = input.to_vec();
        let writer = thread::spawn(move || {
            // Ignore failures, because the command may exit without reading its input.
            let _ = stdin.write_all(&input);
        });
        let outcome = running.wait();
        writer.join().expect("the writing thread");
        outcome
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        self.run_with_input(args, b"")
    }

    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::new(command.spawn().expect("wisp starts"))
    }

    /// Starts a guest that runs until its standard input ends, and waits until its command is running.
    pub fn start_guest(&self) -> Running {
        let mut running = self.start(&["run", "--", "sh", "-c", "echo up; exec cat"]);
        running.wait_for("up");
        running
    }

    pub fn bundle(&self) -> PathBuf {
        node::embedded::unpacked(&node::home::Home::at(self.home()).unwrap()).unwrap()
    }

    pub fn runs(&self) -> Vec<PathBuf> {
        self.dirs("runs")
    }

    pub fn instances(&self) -> Vec<PathBuf> {
        self.dirs("instances")
    }

    fn dirs(&self, name: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.home().join(name)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Wisp {
    fn drop(&mut self) {
        use machine::control::{ControlClient, ControlRequest};
        for dir in self.instances() {
            let Ok(mut control) = ControlClient::connect(&dir.join("vmm/control.sock")) else { continue };
            let _ = control.send(&ControlRequest::Kill { by: "the end of a test".into() });
            // The VMM closes the connection when it ends.
            while control.receive(Some(DEADLINE)).is_ok() {}
        }
    }
}

/// A running command, which is killed when dropped.
pub struct Running {
    child: Child,
    pub stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<Vec<u8>>,
    seen: Vec<u8>,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Running {
    fn new(mut child: Child) -> Running {
        let mut stdout = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            loop {
                let mut line = Vec::new();
                match stdout.read_until(b'\n', &mut line) {
                    Ok(count) if count > 0 && sender.send(line).is_ok() => {}
                    _ => break,
                }
            }
        });
        let mut stderr = child.stderr.take().expect("standard error is a pipe");
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let stdin = child.stdin.take();
        Running { child, stdin, lines, seen: Vec::new(), stderr: Some(stderr) }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its ID is not reused.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0, "the command has ended");
    }

    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.extend(&line);
                    if String::from_utf8_lossy(&line).contains(text) {
                        return;
                    }
                }
                Err(error) => {
                    let _ = self.child.kill();
                    let stderr = self.stderr.take().map(|thread| thread.join().unwrap_or_default());
                    panic!(
                        "{text:?} did not appear ({error}); stdout {:?}, stderr {stderr:?}",
                        String::from_utf8_lossy(&self.seen)
                    );
                }
            }
        }
    }

    pub fn has_ended_within(&mut self, delay: Duration) -> bool {
        let deadline = Instant::now() + delay;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.extend(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return true,
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    pub fn kill_after(mut self, delay: Duration) -> bool {
        let killed = !self.has_ended_within(delay);
        if killed {
            self.child.kill().expect("the child can be killed");
            self.child.wait().expect("the command ends");
        }
        killed
    }

    pub fn wait(mut self) -> Outcome {
        drop(self.stdin.take());
        let deadline = Instant::now() + DEADLINE;
        let mut timed_out = false;
        // The channel closes when standard output does.
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.extend(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    timed_out = true;
                    let _ = self.child.kill();
                    break;
                }
            }
        }
        let status: ExitStatus = self.child.wait().expect("the command ends");
        let stderr = self.stderr.take().map(|thread| thread.join().unwrap_or_default()).unwrap_or_default();
        let stdout = std::mem::take(&mut self.seen);
        assert!(
            !timed_out,
            "the command took too long; stdout {:?}, stderr {stderr}",
            String::from_utf8_lossy(&stdout)
        );
        Outcome { code: status.code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Outcome {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
}

pub fn vmm_pid(dir: &Path) -> u32 {
    use machine::control::{ControlClient, ControlRequest, Message};
    let mut control = ControlClient::connect(&dir.join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Status).unwrap();
    match control.receive(Some(DEADLINE)).unwrap() {
        Message::Status(status) => status.pid,
        other => panic!("not a status: {other:?}"),
    }
}

/// Waits until a machine's lock is released, that is, until both its supervisor and its VMM have ended.
pub fn wait_until_unlocked(dir: &Path) {
    drop(node::home::lock_file(&dir.join("lock")).unwrap());
}

/// Waits for `text` in a VMM's log, which the supervisor writes with a delay because it comes through a pipe.
#[track_caller]
pub fn wait_for_log(dir: &Path, text: &str) {
    wait::wait_for_text(&dir.join("vmm.log"), text);
}

/// Returns the VMM and supervisor processes of instances, with their instance IDs.
pub fn vmm_processes(home: &Path) -> Vec<(i32, ec2::InstanceId)> {
    let mut found = Vec::new();
    for pid in wait::pids() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> =
            line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
        let ["wisp", "vmm", dir, ..] = words[..] else { continue };
        if let Ok(path) = Path::new(dir).strip_prefix(home.join("instances"))
            && let Ok(id) = path.to_str().unwrap().parse()
        {
            found.push((pid, id));
        }
    }
    found.sort_unstable();
    found
}

/// Returns the processes whose command lines contain these consecutive words.
pub fn processes(words: &[&str]) -> Vec<i32> {
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        line.windows(words.len()).any(|some| some.iter().zip(words).all(|(word, wanted)| *word == wanted.as_bytes()))
    };
    wait::pids().filter(is_one).collect()
}

pub fn kill_router(dir: &str) -> i32 {
    let [router] = processes(&["router", dir])[..] else { panic!("expected one router of {dir}") };
    // SAFETY: this test started the process, which is running.
    assert_eq!(unsafe { libc::kill(router, libc::SIGKILL) }, 0);
    wait_until_gone(router.try_into().unwrap());
    router
}

/// Waits until no process (such as a VMM, a router or passt) has the data directory in its command line.
pub fn await_no_processes_of(wisp: &Wisp) {
    let home = wisp.home().to_str().unwrap();
    // A zombie has no command line.
    let is_left = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(home));
    wait::await_end_of("a process of the data directory", || wait::pids().filter(is_left).collect());
}

/// Returns pseudorandom bytes, which are the same in each call.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Builds a program of tests/programs as a static binary, which runs in any guest.
pub fn program(name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/programs/{name}.rs"));
    let options = ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"];
    let built = Command::new("rustc").args(options).arg(dir.path().join(name)).arg(source).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    std::fs::read(dir.path().join(name)).unwrap()
}

pub fn kernel_of(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x100_0000;
    let mut image = vec![0_u8; 120];
    image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(24, &ADDRESS.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &1_u32.to_le_bytes());
    put(72, &120_u64.to_le_bytes());
    put(88, &ADDRESS.to_le_bytes());
    put(96, &(code.len() as u64).to_le_bytes());
    put(104, &4096_u64.to_le_bytes());
    image.extend(code);
    image
}
