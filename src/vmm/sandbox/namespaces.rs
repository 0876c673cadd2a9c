//! The VMM in its namespaces (namespaces(7), user_namespaces(7)). [`split`](mod@crate::process::split) creates them.
//!
//! Creating a user namespace needs no privilege: root in the namespace is not root on the host and cannot access
//! resources of the host's root. The VMM is the first process of its PID namespace, so it cannot see or signal other
//! processes. The user is mapped to itself, so file ownership is unchanged. The network namespace is empty; the
//! supervisor's [broker](netstack::broker) opens the published ports on the host.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Signal, set_parent_process_death_signal};

#[derive(Debug)]
pub struct SandboxedChild {
    /// The reason why the process is in no new namespaces; `None` if it is in some.
    pub refused: Option<io::Error>,
    /// The reason why the process is in all new namespaces except a network namespace.
    pub network_refused: Option<io::Error>,
    /// The read end of a pipe, which closes when the supervisor exits.
    pub supervisor: OwnedFd,
}

impl SandboxedChild {
    /// Makes the kernel kill the VMM when the supervisor exits. Drop privileges first, because that resets the setting.
    pub fn end_with_supervisor(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The supervisor may have exited before the setting took effect.
        let mut supervisor = [PollFd::new(&self.supervisor, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut supervisor, Some(&now))? {
            0 => Ok(()),
            _ => Err(io::Error::other("the VMM's supervisor exited")),
        }
    }
}
