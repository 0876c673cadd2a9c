//! The signals process 1 acts on, taken from a descriptor so that one loop waits for all there is.
//!
//! | signal | from | meaning |
//! |---|---|---|
//! | SIGCHLD | the kernel | a child, maybe an orphan, has ended |
//! | SIGTERM | busybox's `reboot`, the agent | start again |
//! | SIGUSR2 | busybox's `poweroff`, the agent | power off |
//! | SIGUSR1 | busybox's `halt` | power off: a halted virtual machine is of use to nobody |
//! | SIGINT | control-alt-delete, the host's stop button | power off, as an EC2 instance does |

use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::system::RebootCommand;
use wisp_agent::agent::Agent;

/// How the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Off.
    PowerOff,
    /// And on again.
    Restart,
}

/// The signals, blocked and to be read.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    ending: Option<Ending>,
}

impl Signals {
    /// Blocks the signals in this thread and those it starts, and has control-alt-delete send one.
    pub fn take_over() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, and the other calls use it after that.
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
        // Without it the kernel restarts the machine at once.
        let _ = rustix::system::reboot(RebootCommand::CadOff);
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, ending: None })
    }

    /// Acts on the signals that have come; breaks when the guest is to end, and how is [`ending`](Self::ending).
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

    /// What the last signal asked for.
    pub fn ending(&self) -> Ending {
        self.ending.unwrap_or(Ending::PowerOff)
    }

    /// The next signal that has come, if any.
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
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
