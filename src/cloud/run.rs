//! Ephemeral instances, which exist only for the duration of one command, such as `wisp run`.
//!
//! The VMM's lock protects the instance's directory under `runs/`. The VMM exits when its command exits, for whatever
//! reason. If all processes were killed, the next command that starts an ephemeral instance removes the directory.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use super::error::CloudError;
use super::limits::limit_as;
use super::network::{self, NetworkConnection};
use super::new_id;
use super::run_spec::{Boot, RunSpec, SEED, host_name};
use super::template::Template;
use ec2::id::InstanceId;
use machine::control::{ClientError, ControlClient, ControlRequest, Message, VmmStatus};
use machine::end::End;
use machine::files::{self, CONSOLE_LOG, LOCK, VSOCK_SOCKET};
use machine::launch::Launcher;
use machine::out_of_memory::OomKillCount;
use machine::snapshot_files;
use machine::untrusted;
use node::guest::Seed;
use node::home::{Home, HomeError, lock_file, try_lock_file, write_private};
use node::vmm_process::{self, Inherited};

/// Name of the directory for a snapshot, in the VMM's own directory.
const SAVED: &str = "saved";
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// Number of console lines shown after a failure.
const CONSOLE_LINES: usize = 12;
/// Bytes of the console log that are searched for these lines.
const CONSOLE_TAIL: u64 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("cannot create the instance's directory {}: {source}", path.display())]
    InstanceDir { path: PathBuf, source: io::Error },
    #[error("cannot start the VMM: {0}")]
    Spawn(#[source] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("{end} before its agent was ready{console}")]
    EndedEarly { end: Box<End>, console: ConsoleTail },
    #[error(
        "the guest is running, but its agent was not ready after {} s{console}\n\
         Wait longer with --timeout, or watch its console with --console", after.as_secs()
    )]
    NotReady { after: Duration, console: ConsoleTail },
    #[error(transparent)]
    Control(#[from] ClientError),
    #[error(transparent)]
    Agent(#[from] node::guest::Error),
    #[error("cannot save the machine: {0}")]
    Unsaved(String),
    #[error(transparent)]
    Network(#[from] Box<CloudError>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleTail(Vec<String>);

impl std::fmt::Display for ConsoleTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return write!(f, "; the console is empty");
        }
        write!(f, ". Last lines of the console:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}

/// A running ephemeral instance. Dropping it kills the machine and removes the directory.
#[derive(Debug)]
pub struct EphemeralInstance {
    id: InstanceId,
    dir: PathBuf,
    vmm: Child,
    control: ControlClient,
    /// This process's end of the console socket. `None` if no console was requested, or after it was taken.
    console: Option<UnixStream>,
    ended: Option<(End, VmmStatus)>,
    ready: bool,
    killed_before: OomKillCount,
}

impl EphemeralInstance {
    /// Starts an instance by a cold boot. `began_ns` is the monotonic start time of the user's command.
    pub fn start(home: &Home, spec: &RunSpec, began_ns: u64) -> Result<EphemeralInstance, RunError> {
        EphemeralInstance::start_from(home, spec, None, began_ns)
    }

    /// Starts an instance by restoring the template `warm`, or by a cold boot if it is `None`.
    pub fn start_from(
        home: &Home,
        spec: &RunSpec,
        warm: Option<&Template>,
        began_ns: u64,
    ) -> Result<EphemeralInstance, RunError> {
        let (id, dir, lock) = create_directory(home)?;
        let started = EphemeralInstance::spawn(id, &dir, lock, spec, warm, began_ns);
        if started.is_err() {
            // The first error is more useful than one about the removal.
            let _ = fs::remove_dir_all(&dir);
        }
        started
    }

    fn spawn(
        id: InstanceId,
        dir: &Path,
        lock: fs::File,
        spec: &RunSpec,
        warm: Option<&Template>,
        began_ns: u64,
    ) -> Result<EphemeralInstance, RunError> {
        let failed = |source| RunError::InstanceDir { path: dir.to_path_buf(), source };
        if let (Some(_), Boot::Image(image)) = (warm, &spec.boot) {
            let (instance_id, hostname) = (id.to_string(), Some(host_name(&id)));
            let default_user = image.manifest.default_user.clone();
            let seed = Seed { instance_id, hostname, default_user, ..Seed::default() };
            write_private(&dir.join(SEED), &seed.encode()).map_err(failed)?;
        }
        let mut machine = spec.machine(&id, dir, warm);
        let network = match &spec.network {
            Some(network) => {
                let image = if let Boot::Image(image) = &spec.boot { Some(&image.manifest) } else { None };
                let link = network::run_link(id, image, network);
                network::connect(id, dir, &link, network.mode, &mut machine).map_err(Box::new)?
            }
            None => None,
        };
        if let Some(instance_type) = spec.limits {
            limit_as(&mut machine, instance_type);
        }
        vmm_process::write_config(dir, &machine).map_err(failed)?;
        let (owner, vmm_owner) = UnixStream::pair().map_err(RunError::Spawn)?;
        let console = if spec.console { Some(UnixStream::pair().map_err(RunError::Spawn)?) } else { None };
        let (console, vmm_console) = console.unzip();
        let (network, backend) = network.map(NetworkConnection::split).unzip();
        let inherited = Inherited { lock, launcher: Launcher::Owner(vmm_owner), console: vmm_console, network };
        let vmm = vmm_process::spawn(dir, inherited, warm.map(Template::restore).as_ref(), began_ns)
            .map_err(RunError::Spawn)?;
        let control = ControlClient::new(owner)?;
        let dir = dir.to_path_buf();
        let killed_before = OomKillCount::now();
        let (ended, ready) = (None, false);
        let instance = EphemeralInstance { id, dir, vmm, control, console, ended, ready, killed_before };
        backend.unwrap_or_default().start().map_err(Box::new)?;
        Ok(instance)
    }

    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    pub(super) fn vmm_directory(&self) -> PathBuf {
        files::vmm_directory(&self.dir)
    }

    /// Returns the socket of the guest's agent.
    pub fn vsock(&self) -> PathBuf {
        self.vmm_directory().join(VSOCK_SOCKET)
    }

    pub fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    pub fn wait_ready(&mut self, timeout: Duration) -> Result<(), RunError> {
        let deadline = Instant::now() + timeout;
        while !self.ready {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match self.next_message(Some(left)) {
                Ok(()) => {}
                Err(RunError::Control(ClientError::Io(error))) if is_timeout(&error) => {
                    return Err(RunError::NotReady { after: timeout, console: self.console_tail() });
                }
                Err(error) => return Err(error),
            }
            if let Some((end, _)) = &self.ended {
                return Err(RunError::EndedEarly { end: Box::new(end.clone()), console: self.console_tail() });
            }
        }
        Ok(())
    }

    pub fn wait_ended(&mut self, timeout: Option<Duration>) -> Result<(End, VmmStatus), RunError> {
        loop {
            if let Some(ended) = &self.ended {
                return Ok(ended.clone());
            }
            self.next_message(timeout)?;
        }
    }

    pub fn kill(&mut self) -> Result<(End, VmmStatus), RunError> {
        if self.ended.is_none() {
            self.control.send(&ControlRequest::Kill { by: "wisp run".into() })?;
        }
        self.wait_ended(Some(END_TIMEOUT))
    }

    /// Saves the machine to `dir` and ends it.
    pub fn save(&mut self, dir: &Path, timeout: Duration) -> Result<(), RunError> {
        // The VMM can write only to its own directory.
        let saved = self.vmm_directory().join(SAVED);
        let failed = |source| RunError::InstanceDir { path: dir.to_path_buf(), source };
        fs::DirBuilder::new().mode(0o700).create(&saved).map_err(failed)?;
        self.control.send(&ControlRequest::Save { dir: saved.clone() })?;
        match self.wait_ended(Some(timeout)) {
            Ok((End::Saved, _)) => snapshot_files::take(&saved, dir).map_err(failed),
            Ok((end, _)) => Err(RunError::Unsaved(end.to_string())),
            Err(RunError::Refused(why)) => Err(RunError::Unsaved(why)),
            Err(error) => Err(error),
        }
    }

    pub fn status(&mut self) -> Result<VmmStatus, RunError> {
        self.control.send(&ControlRequest::Status)?;
        loop {
            match self.control.receive(Some(END_TIMEOUT))? {
                Message::Status(status) => return Ok(*status),
                message => self.note(message)?,
            }
        }
    }

    fn next_message(&mut self, timeout: Option<Duration>) -> Result<(), RunError> {
        let message = self.control.receive(timeout).map_err(|error| self.explain(error))?;
        self.note(message)
    }

    /// Explains why the connection closed, if the VMM's log or the host's out-of-memory kills give a reason. The log is
    /// removed with the directory, so the error must contain the reason.
    fn explain(&self, error: ClientError) -> RunError {
        let known = match &error {
            ClientError::Gone => vmm_process::last_violation(&self.dir)
                .or_else(|| self.killed_before.suspicion().map(|suspicion| format!("{error}; {suspicion}"))),
            _ => None,
        };
        known.map_or(error.into(), RunError::Refused)
    }

    fn note(&mut self, message: Message) -> Result<(), RunError> {
        match message {
            Message::Ready => self.ready = true,
            Message::Ended { end, status } => self.ended = Some((end, *status)),
            Message::Failed { why } => return Err(RunError::Refused(why)),
            Message::Status(_)
            | Message::Done
            | Message::Attached { .. }
            | Message::Reloaded { .. }
            | Message::Saved { .. } => {}
        }
        Ok(())
    }

    pub fn console_tail(&self) -> ConsoleTail {
        console_tail(&self.vmm_directory())
    }
}

impl Drop for EphemeralInstance {
    fn drop(&mut self) {
        if self.kill().is_err() {
            // The VMM does not answer or failed to start, so there may be no process to kill.
            let _ = self.vmm.kill();
        }
        let _ = self.vmm.wait();
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {error}", self.dir.display());
            }
            _ => {}
        }
    }
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Creates a directory with its lock held, and removes the directories of ended instances. Both happen under one lock,
/// so an unlocked directory is never a new one.
fn create_directory(home: &Home) -> Result<(InstanceId, PathBuf, fs::File), RunError> {
    let runs = home.runs();
    let _all = home.lock(&runs)?;
    sweep(&runs);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| RunError::InstanceDir { path, source }
    };
    let id: InstanceId = new_id();
    let dir = runs.join(id.to_string());
    fs::DirBuilder::new().mode(0o700).create(&dir).map_err(failed(&dir))?;
    let lock = lock_file(&dir.join(LOCK)).map_err(failed(&dir))?;
    Ok((id, dir, lock))
}

fn sweep(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    for dir in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if let Ok(Some(_lock)) = try_lock_file(&dir.join(LOCK)) {
            log::info!("removing the leftover directory {}", dir.display());
            if let Err(error) = fs::remove_dir_all(&dir) {
                log::warn!("cannot remove {}: {error}", dir.display());
            }
        }
    }
}

/// Returns the last console lines of the guest whose VMM has the directory `own`.
pub(super) fn console_tail(own: &Path) -> ConsoleTail {
    let bytes = untrusted::read_tail(&own.join(CONSOLE_LOG), CONSOLE_TAIL).unwrap_or_default();
    ConsoleTail(last_lines(&bytes, CONSOLE_LINES))
}

/// Returns the last `count` lines of console output that are not blank. Removes control characters, which could
/// move a terminal's cursor.
fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_removes_only_unlocked_directories() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let (_, held, _lock) = create_directory(&home).unwrap();
        let (_, left, lock) = create_directory(&home).unwrap();
        drop(lock);
        let (_, new, _new_lock) = create_directory(&home).unwrap();
        assert!(held.exists() && new.exists() && !left.exists());
    }

    #[test]
    fn console_tail_drops_control_characters() {
        let lines = last_lines(b"one\r\n\x1b[2Jtwo\n\n\nthree\n", 2);
        assert_eq!(lines, ["[2Jtwo", "three"]);
    }
}
