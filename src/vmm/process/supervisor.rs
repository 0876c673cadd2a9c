//! Supervisor of a VMM: waits for the VMM, writes its log and cleans up after it.
//!
//! The VMM's sandbox prevents it from executing itself again after a guest reboot and from removing its directory. The
//! supervisor holds the instance's lock together with the VMM and forwards termination signals. Neither process
//! outlives the other. The supervisor also opens host sockets for the VMM ([`broker`](netstack::broker)).

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::log_pipe::LogPipe;
use super::signals::Signals;
use super::{Arguments, ProcessError, keep_record};
use crate::snapshot::origin;
use machine::descriptors::keep_open;
use machine::end_record::EndRecord;
use machine::environment;
use machine::files::vmm_directory;
use machine::out_of_memory::OomKillCount;
use machine::sandbox_record::{SECCOMP_EXIT_CODE, violation};
use netstack::broker::Broker;

/// The exit code of a VMM whose guest rebooted.
pub(super) const AGAIN: u8 = 75;
/// The exit code of a VMM whose owner exited without removing the directory.
pub(super) const LEFT: u8 = 76;
/// A VMM that ran for less than this may be part of a guest's reboot loop.
const SHORT_RUN: Duration = Duration::from_secs(10);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(16);

/// The supervisor's resources while its VMM runs.
pub(super) struct Supervisor<'a> {
    pub arguments: &'a Arguments,
    pub signals: &'a Signals,
    pub broker: Broker,
    pub log: LogPipe,
    /// Released by the caller, after everything else: commands take a free lock to mean that no process is left.
    pub lock: &'a OwnedFd,
    pub network: Option<OwnedFd>,
    pub began: Instant,
}

impl Supervisor<'_> {
    /// Waits for the VMM and cleans up after it. Returns the supervisor's exit code, or restarts the machine.
    pub fn supervise(mut self, vmm: Pid) -> Result<ExitCode, ProcessError> {
        let dir = &self.arguments.dir;
        let killed_before = OomKillCount::now();
        let waited = self.signals.wait(vmm, &mut self.broker, &mut self.log);
        let status = waited.map_err(ProcessError::host("waiting for the VMM failed"))?;
        if status.terminating_signal() == Some(libc::SIGKILL)
            && self.arguments.owner.is_none()
            && let Some(suspicion) = killed_before.suspicion()
            && let Ok(None) = EndRecord::read(&vmm_directory(dir))
        {
            keep_failure(format!("its VMM was killed; {suspicion}"), dir);
        }
        let short_runs = count_short_runs(self.arguments.short_runs, self.began.elapsed());
        let code = self.handle_end(status.exit_status(), short_runs);
        self.signals.unblock();
        code.map_or_else(|| Err(start_again(dir, self.lock, self.network.as_ref(), short_runs)), Ok)
    }

    /// Handles the end of the VMM. `code` is its exit code, if it exited. Returns the supervisor's exit code, or `None`
    /// to restart the machine.
    fn handle_end(&self, code: Option<i32>, short_runs: u32) -> Option<ExitCode> {
        let dir = &self.arguments.dir;
        if let Err(error) = origin::forget(&vmm_directory(dir)) {
            log::warn!("cannot remove the link to the restored snapshot's memory: {error}");
        }
        match Aftermath::of(code, self.arguments.owner.is_some()) {
            Aftermath::StartAgain => {
                let delay = restart_delay(short_runs);
                if !delay.is_zero() {
                    log::warn!(
                        "the guest rebooted {short_runs} times shortly after starting; restarting it in {delay:?}"
                    );
                }
                if !self.signals.end_within(delay) {
                    return None;
                }
                keep_failure("it was terminated by a signal during a guest reboot".into(), dir);
            }
            // The owner was killed; otherwise it would have removed the directory itself.
            Aftermath::RemoveDirectory => drop(fs::remove_dir_all(dir)),
            Aftermath::RecordViolation => {
                let unnamed = || "its VMM made a system call that its seccomp filter denies".into();
                keep_failure(violation(dir).unwrap_or_else(unnamed), dir);
            }
            Aftermath::Nothing => {}
        }
        // A VMM that was killed by a signal has no exit code.
        Some(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
    }
}

/// The action of the supervisor after its VMM has exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    StartAgain,
    RemoveDirectory,
    RecordViolation,
    Nothing,
}

impl Aftermath {
    /// Returns the action for an exit code. A compromised VMM can choose its code, so a code that is invalid for the
    /// kind of machine (with or without an owner) has no effect.
    fn of(code: Option<i32>, has_owner: bool) -> Aftermath {
        const AGAIN_CODE: i32 = AGAIN as i32;
        const LEFT_CODE: i32 = LEFT as i32;
        match (code, has_owner) {
            (Some(AGAIN_CODE), false) => Aftermath::StartAgain,
            (Some(LEFT_CODE), true) => Aftermath::RemoveDirectory,
            (Some(SECCOMP_EXIT_CODE), false) => Aftermath::RecordViolation,
            _ => Aftermath::Nothing,
        }
    }
}

/// Returns the number of consecutive short runs, including one of length `run`. `before` is the number without it.
fn count_short_runs(before: u32, run: Duration) -> u32 {
    if run < SHORT_RUN { before.saturating_add(1) } else { 0 }
}

/// Returns the delay before a restart. One short run causes no delay: a user may reboot a guest right after its start.
fn restart_delay(short_runs: u32) -> Duration {
    match short_runs {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(16)).min(MAX_RESTART_DELAY),
    }
}

/// Restarts the machine after a guest reboot: re-executes wisp in the supervisor's process. Returns only on failure.
fn start_again(dir: &Path, lock: &OwnedFd, network: Option<&OwnedFd>, short_runs: u32) -> ProcessError {
    let mut command = Command::new("/proc/self/exe");
    environment::restrict(&mut command);
    command.arg0("wisp").arg("vmm").arg(dir).args(["--short-runs", &short_runs.to_string()]);
    for (option, fd) in [("--lock-fd", Some(lock)), ("--network-fd", network)] {
        match fd.map(keep_open).transpose() {
            Ok(number) => {
                command.args(number.map(|number| [option.to_string(), number.to_string()]).into_iter().flatten())
            }
            Err(error) => {
                return ProcessError::host("cannot keep the lock and the network open across the reboot")(error);
            }
        };
    }
    ProcessError::host("cannot restart the VMM after the guest's reboot")(command.exec())
}

fn keep_failure(why: String, dir: &Path) {
    keep_record(&EndRecord::Failed { why }, &vmm_directory(dir));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_for_other_kind_of_machine_has_no_effect() {
        let (again, left) = (Some(i32::from(AGAIN)), Some(i32::from(LEFT)));
        assert_eq!(Aftermath::of(again, false), Aftermath::StartAgain);
        assert_eq!(Aftermath::of(again, true), Aftermath::Nothing);
        assert_eq!(Aftermath::of(left, true), Aftermath::RemoveDirectory);
        assert_eq!(Aftermath::of(left, false), Aftermath::Nothing);
        assert_eq!(Aftermath::of(Some(SECCOMP_EXIT_CODE), false), Aftermath::RecordViolation);
        assert_eq!(Aftermath::of(Some(SECCOMP_EXIT_CODE), true), Aftermath::Nothing);
        for code in [None, Some(0), Some(1), Some(-1), Some(i32::from(AGAIN) + 256)] {
            assert_eq!(Aftermath::of(code, true), Aftermath::Nothing);
            assert_eq!(Aftermath::of(code, false), Aftermath::Nothing);
        }
    }

    #[test]
    fn restart_delay_grows_with_short_runs_up_to_maximum() {
        let delays: Vec<u64> = (0..=7).map(|runs| restart_delay(runs).as_secs()).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4, 8, 16, 16]);
        assert_eq!(restart_delay(u32::MAX), MAX_RESTART_DELAY);
        assert_eq!(count_short_runs(0, Duration::from_secs(1)), 1);
        assert_eq!(count_short_runs(u32::MAX, Duration::ZERO), u32::MAX);
        assert_eq!(count_short_runs(7, SHORT_RUN), 0);
    }
}
