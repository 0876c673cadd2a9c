//! Signals of process 1, read from a descriptor so that one loop waits for everything.
//!
//! | signal | from | meaning |
//! |---|---|---|
//! | SIGCHLD | the kernel | a child, possibly an orphan, has ended |
//! | SIGTERM | busybox's `reboot`, the agent | restart |
//! | SIGUSR2 | busybox's `poweroff`, the agent | power off |
//! | SIGUSR1 | busybox's `halt` | power off: a halted virtual machine is useless |
//! | SIGINT | control-alt-delete, the host's stop button | power off, as an EC2 instance does |

use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::system::RebootCommand;
use wisp_agent::agent::Agent;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Restart,
}

#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    ending: Option<Ending>,
}

impl Signals {
    /// Blocks the signals in this thread and its later children, and makes control-alt-delete send SIGINT.
    pub fn take_over() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes the set, and the other calls use it after that.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGINT] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // Otherwise control-alt-delete makes the kernel restart the machine immediately.
        let _ = rustix::system::reboot(RebootCommand::CadOff);
        // SAFETY: the descriptor is new and has no other owner.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, ending: None })
    }

    /// Handles pending signals. Breaks when the guest must power off or restart (see [`ending`](Self::ending)).
    pub fn act(&mut self, agent: &Agent) -> ControlFlow<()> {
        while let Some(signal) = self.next() {
            match signal {
                libc::SIGCHLD => {
                    agent.children.reap_orphans();
                }
                libc::SIGTERM => self.ending = Some(Ending::Restart),
                _ => self.ending = Some(Ending::PowerOff),
            }
        }
        if self.ending.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub fn ending(&self) -> Ending {
        self.ending.unwrap_or(Ending::PowerOff)
    }

    fn next(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` has room for `size` bytes.
        let count = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(count) != Ok(size) {
            return None;
        }
        // SAFETY: the kernel filled all of it.
        i32::try_from(unsafe { info.assume_init() }.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    /// Returns a descriptor that is readable while a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
