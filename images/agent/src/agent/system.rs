//! Operations on the whole guest: facts, host name, shutdown.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, getpid, kill_process};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};

use super::children::Children;
use super::environment::{self, Lookup, look_up};
use super::spawn::{Program, Stdio, spawn};
use super::users::User;
use crate::protocol::{ExitStatus, Facts};
use crate::resumed::FEATURE;
use crate::tree::HOLES_FEATURE;

pub fn facts(is_init: bool) -> Facts {
    let uptime = clock_gettime(ClockId::Boottime);
    Facts {
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        uptime: Duration::new(uptime.tv_sec.try_into().unwrap_or(0), uptime.tv_nsec.try_into().unwrap_or(0)),
        agent_version: format!("{}{FEATURE}{HOLES_FEATURE}", env!("CARGO_PKG_VERSION")),
        is_init,
    }
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Starts to shut the guest down. Process 1 sends itself the signal that busybox's `reboot` or `poweroff` sends. In
/// other guests, asks the service manager. If that fails, syncs the file systems and stops the machine.
pub fn shut_down(children: &Children, is_init: bool, reboot: bool) {
    if is_init {
        let _ = kill_process(getpid(), if reboot { Signal::TERM } else { Signal::USR2 });
        return;
    }
    let verb = if reboot { "reboot" } else { "poweroff" };
    if run(children, &["systemctl", verb]) || run(children, &[verb]) {
        return;
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(if reboot { RebootCommand::Restart } else { RebootCommand::PowerOff });
}

/// Runs a system command without input or output. Returns true if it succeeded.
pub fn run(children: &Children, argv: &[&str]) -> bool {
    let started = (|| -> io::Result<_> {
        let Lookup::Found(path) = look_up(argv[0].as_ref(), environment::PATH.as_ref()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let program = Program {
            path: std::ffi::CString::new(path.into_encoded_bytes())?,
            argv: argv.iter().map(|word| std::ffi::CString::new(*word)).collect::<Result<_, _>>()?,
            env: environment::to_c_strings(environment::for_user(&User::own()))?,
            cwd: None,
        };
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        children.spawn(|| spawn(&program, Stdio::Descriptors([null.as_fd(); 3])))
    })();
    started.is_ok_and(|child| children.reap(child) == ExitStatus::Exited(0))
}
