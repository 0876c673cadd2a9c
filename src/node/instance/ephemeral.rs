//! Ephemeral instances, which exist only for the duration of one command, such as `wisp run`.
//!
//! The VMM's lock protects the instance's directory under `runs/`. The VMM exits when its command exits, for whatever
//! reason. If all processes were killed, the next command that starts an ephemeral instance removes the directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use tempfile::TempDir;

use super::dir::InstanceDir;
use super::error::{Failure, MachineError};
use super::handle::MachineHandle;
use super::pinning::{self, PinError};
use super::start::{Connection, StartPlan};
use crate::home::{Home, lock_file, try_lock_file};
use crate::vmm_process;
use ec2::InstanceId;
use ec2::state::InstanceState;
use machine::control::{ClientError, ControlRequest, Message, NewOverlay, VmmStatus};
use machine::end::End;
use machine::files::LOCK;
use machine::launch::Launcher;
use machine::out_of_memory::OomKillCount;
use machine::snapshot_files;

/// Timeout for a snapshot. The guest keeps running for most of this time.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// A running ephemeral instance. Dropping it kills the machine and removes the directory.
#[derive(Debug)]
pub struct EphemeralInstance {
    machine: MachineHandle,
    vmm: Child,
    /// This process's end of the console socket. `None` if no console was requested, or after it was taken.
    console: Option<UnixStream>,
    killed_before: OomKillCount,
}

impl EphemeralInstance {
    /// Creates a directory with its lock held, and removes the directories of ended instances. Both happen under one
    /// lock, so an unlocked directory is never a new one.
    pub fn create_dir(home: &Home, id: InstanceId) -> Result<(InstanceDir, File), MachineError> {
        let runs = home.runs();
        let _all = home.lock(&runs)?;
        sweep(&runs);
        let dir = InstanceDir::of_ephemeral(home, id);
        dir.create()?;
        let path = dir.path().join(LOCK);
        let lock = lock_file(&path).map_err(MachineError::file(path, "lock"))?;
        Ok((dir, lock))
    }

    /// Starts the machine. Its VMM exits when this process does.
    pub fn start(plan: StartPlan, wants_console: bool) -> Result<EphemeralInstance, MachineError> {
        let dir = plan.dir.clone();
        EphemeralInstance::spawn(plan, wants_console).inspect_err(|_| {
            // The first error is more useful than one about the removal.
            let _ = fs::remove_dir_all(dir.path());
        })
    }

    fn spawn(plan: StartPlan, wants_console: bool) -> Result<EphemeralInstance, MachineError> {
        let dir = plan.dir.clone();
        let pair = || UnixStream::pair().map_err(|error| dir.error(Failure::Spawn(error)));
        let (near, owner) = pair()?;
        let (console, vmm_console) = if wants_console { Some(pair()?) } else { None }.unzip();
        let connection = Connection { launcher: Launcher::Owner(owner), near, console: vmm_console };
        let (machine, vmm) = plan.spawn(connection)?;
        Ok(EphemeralInstance { machine, vmm, console, killed_before: OomKillCount::now() })
    }

    pub fn dir(&self) -> &InstanceDir {
        self.machine.dir()
    }

    pub fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    pub fn status(&mut self) -> Result<VmmStatus, MachineError> {
        self.machine.status_within(END_TIMEOUT)
    }

    /// Waits up to `timeout` until the agent is ready, and returns true if it is.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        let ready = self.machine.wait_ready(timeout);
        ready.map_err(|error| self.explain(error))
    }

    /// Pins each vCPU to a host CPU: the first vCPU to the first usable CPU, and so on. Returns the CPUs.
    pub fn pin_vcpus(&self, vcpus: u32) -> Result<Vec<usize>, PinError> {
        pinning::pin(self.vmm.id(), vcpus)
    }

    pub fn not_ready(&self, after: Duration) -> MachineError {
        self.machine.not_ready(InstanceState::Running, after)
    }

    /// Waits up to `timeout` for the machine's end, and returns how it ended and its last status.
    pub fn outcome(&mut self, timeout: Duration) -> Result<(End, VmmStatus), MachineError> {
        let outcome = self.machine.outcome(timeout);
        outcome.map_err(|error| self.explain(error))
    }

    pub fn kill(&mut self) -> Result<(End, VmmStatus), MachineError> {
        if !self.machine.has_ended() {
            self.machine.kill("wisp run").map_err(|error| self.explain(error))?;
        }
        self.outcome(END_TIMEOUT)
    }

    /// Takes a snapshot of the running machine, whose disk continues in the new overlay. Returns its directory, in which
    /// the VMM cannot write.
    pub fn fork(&mut self, layer: NewOverlay) -> Result<TempDir, MachineError> {
        let [own, saved] = self.dir().saved_for_others()?;
        let request = ControlRequest::Fork { dir: own.path().to_path_buf(), layers: vec![layer] };
        match self.machine.ask_within(&request, SAVE_TIMEOUT) {
            Ok(Message::Saved { .. }) => {}
            Ok(other) => return Err(self.machine.unexpected(&other)),
            Err(error) => return Err(self.explain(error)),
        }
        snapshot_files::take(own.path(), saved.path()).map_err(MachineError::file(saved.path(), "create"))?;
        Ok(saved)
    }

    /// Gives a guest that booted for a template its identity, and waits up to `timeout` until its agent has applied it.
    /// Returns true if it has.
    pub fn personalize(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        let ready = self.machine.personalize(timeout);
        ready.map_err(|error| self.explain(error))
    }

    /// Explains why the connection closed, if the VMM's log or the host's out-of-memory kills give a reason. The log is
    /// removed with the directory, so the error must contain the reason.
    fn explain(&self, mut error: MachineError) -> MachineError {
        let is_gone = match &error.failure {
            Failure::Control(ClientError::Gone) => true,
            Failure::EndedEarly { end, .. } => end.is_none(),
            _ => false,
        };
        if is_gone {
            let gone = ClientError::Gone;
            let known = vmm_process::last_violation(self.dir().path())
                .or_else(|| self.killed_before.suspicion().map(|suspicion| format!("{gone}; {suspicion}")));
            error.failure = known.map_or(Failure::Control(gone), Failure::Refused);
        }
        error
    }
}

impl Drop for EphemeralInstance {
    fn drop(&mut self) {
        if self.kill().is_err() {
            // The VMM does not answer or failed to start, so there may be no process to kill.
            let _ = self.vmm.kill();
        }
        let _ = self.vmm.wait();
        let path = self.dir().path();
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {error}", path.display());
            }
            _ => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_removes_only_unlocked_directories() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let create = |byte| EphemeralInstance::create_dir(&home, InstanceId::from_random([byte; 9])).unwrap();
        let (held, _lock) = create(1);
        let (left, lock) = create(2);
        drop(lock);
        let (new, _new_lock) = create(3);
        assert!(held.path().exists() && new.path().exists() && !left.path().exists());
    }
}
