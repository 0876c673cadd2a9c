//! Starts a process by `posix_spawn`, in a session of its own.
//!
//! posix_spawn shares the agent's memory with the child until its exec, so that no page table is
//! copied: under software KVM a fork of even this process costs tens of milliseconds. It can do all
//! that is needed here: a new session, a working directory, and a terminal, which becomes the
//! controlling one because the leader of a new session opens it.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;

/// What to execute.
#[derive(Debug)]
pub struct Program {
    /// The file.
    pub path: CString,
    /// Its arguments, the program's name first.
    pub argv: Vec<CString>,
    /// Its environment, as `name=value`.
    pub env: Vec<CString>,
    /// Its working directory; else the agent's.
    pub cwd: Option<CString>,
}

/// A process's standard input, output and error.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// These three descriptors, none of which is below 3.
    Descriptors([BorrowedFd<'a>; 3]),
    /// This terminal for all three, and as the controlling terminal.
    Terminal(&'a CStr),
}

/// Starts the program as the leader of a new session, with no signal blocked or ignored.
///
/// # Errors
/// What kept it from being executed: `ENOENT` for the file, its interpreter or its working directory.
pub fn spawn(program: &Program, stdio: Stdio<'_>) -> io::Result<Pid> {
    let mut actions = FileActions::new()?;
    if let Some(cwd) = &program.cwd {
        actions.change_directory(cwd)?;
    }
    match stdio {
        Stdio::Descriptors(descriptors) => {
            for (number, fd) in (0..).zip(descriptors) {
                actions.duplicate(fd, number)?;
            }
        }
        Stdio::Terminal(path) => {
            actions.open(0, path)?;
            actions.duplicate_number(0, 1)?;
            actions.duplicate_number(0, 2)?;
        }
    }
    let attributes = Attributes::new()?;
    let (argv, env) = (pointers(&program.argv), pointers(&program.env));
    let mut pid = 0;
    // SAFETY: both lists end in a null pointer and point to C strings that outlive the call, as do the
    // path, the actions and the attributes.
    let outcome = unsafe {
        libc::posix_spawn(&raw mut pid, program.path.as_ptr(), &raw const actions.raw, &raw const attributes.raw, argv.as_ptr(), env.as_ptr())
    };
    check(outcome)?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn gave no process id"))
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

/// These functions return their error instead of setting errno.
fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(outcome)) }
}

/// What the child does between its start and its exec.
struct FileActions {
    raw: libc::posix_spawn_file_actions_t,
}

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: it succeeded.
        Ok(Self { raw: unsafe { raw.assume_init() } })
    }

    fn change_directory(&mut self, path: &CStr) -> io::Result<()> {
        // SAFETY: the actions are initialised; the path is copied.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.raw, path.as_ptr()) })
    }

    fn open(&mut self, number: i32, path: &CStr) -> io::Result<()> {
        // SAFETY: the actions are initialised; the path is copied.
        check(unsafe { libc::posix_spawn_file_actions_addopen(&raw mut self.raw, number, path.as_ptr(), libc::O_RDWR, 0) })
    }

    fn duplicate(&mut self, fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
        self.duplicate_number(fd.as_raw_fd(), number)
    }

    fn duplicate_number(&mut self, from: i32, to: i32) -> io::Result<()> {
        // SAFETY: the actions are initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.raw, from, to) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: the actions are initialised, and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.raw) };
    }
}

/// A new session, and the signals as a program expects them.
struct Attributes {
    raw: libc::posix_spawnattr_t,
}

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: it succeeded.
        let mut attributes = Self { raw: unsafe { raw.assume_init() } };
        let raw = &raw mut attributes.raw;
        let flags = libc::POSIX_SPAWN_SETSID as libc::c_int | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the attributes are initialised.
        check(unsafe { libc::posix_spawnattr_setflags(raw, flags) })?;
        let mut signals = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, after which it is used.
        check(unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            libc::posix_spawnattr_setsigmask(raw, signals.as_ptr())
        })?;
        // SAFETY: as above. The agent ignores SIGPIPE; a command must not.
        check(unsafe {
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGPIPE);
            libc::posix_spawnattr_setsigdefault(raw, signals.as_ptr())
        })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: the attributes are initialised, and not used again.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.raw) };
    }
}
