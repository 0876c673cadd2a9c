//! Orderly shutdown: processes get a bounded time to exit, and every disk is unmounted.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::system::RebootCommand;
use wisp_agent::agent::Agent;
use wisp_agent::poll::{Interest, poll};

use super::mounts;
use crate::signals::{Ending, Signals};

/// Maximum time for processes to exit after SIGTERM. Usually, all exit immediately.
const GRACE: Duration = Duration::from_secs(2);

/// Maximum time for processes to exit after SIGKILL. A process that waits for a dead disk does not exit.
const KILL_GRACE: Duration = Duration::from_secs(1);

pub fn stop(agent: &Agent, signals: &mut Signals) -> ! {
    agent.children.stop();
    signal_all(Signal::TERM);
    // A stopped process only receives SIGTERM after it continues.
    signal_all(Signal::CONT);
    if !reap_within(agent, signals, GRACE) {
        signal_all(Signal::KILL);
        reap_within(agent, signals, KILL_GRACE);
    }
    rustix::fs::sync();
    mounts::unmount_disks();
    power_off(signals.ending())
}

pub fn power_off(ending: Ending) -> ! {
    let command = match ending {
        Ending::PowerOff => RebootCommand::PowerOff,
        Ending::Restart => RebootCommand::Restart,
    };
    if let Err(errno) = rustix::system::reboot(command) {
        eprintln!("wisp-init: cannot stop the machine: {errno}");
    }
    // Process 1 must not end: the kernel would panic.
    loop {
        std::thread::park();
    }
}

fn signal_all(signal: Signal) {
    // SAFETY: a call without pointers; -1 means every process but this one (and the kernel's threads).
    unsafe { libc::kill(-1, signal.as_raw()) };
}

/// Reaps children, including orphans, until none is left or the time is up. Returns true if none is left.
fn reap_within(agent: &Agent, signals: &mut Signals, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        // Ignore the result: the guest is already stopping. The last signal decides between power-off and restart.
        let _ = signals.act(agent);
        if !agent.children.reap_orphans() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || poll([Some((signals.as_fd(), Interest::Read))], Some(left)).is_err() {
            return false;
        }
    }
}
