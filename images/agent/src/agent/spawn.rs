//! Starts a process in a new session, with `clone(CLONE_VM CLONE_VFORK)` and `execve`.
//!
//! As with vfork, the child shares the agent's memory until its exec while the parent thread waits, so no page table is
//! copied. Under software KVM a fork costs tens of milliseconds. `posix_spawn` works the same way, but glibc's child
//! makes 120 system calls to reset signal handlers. Under software KVM, these take as long as a fork.
//!
//! The child acquires its controlling terminal by opening it as the leader of a new session.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;

/// Stack size of the child until its exec. It nests few calls; in tests, the dynamic linker also uses the stack.
const STACK_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub struct Program {
    pub path: CString,
    /// Arguments, starting with the program's name.
    pub argv: Vec<CString>,
    /// Environment, as `name=value`.
    pub env: Vec<CString>,
    /// Working directory. Defaults to the agent's.
    pub cwd: Option<CString>,
}

#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// Descriptors for standard input, output and error, all above 2.
    Descriptors([BorrowedFd<'a>; 3]),
    /// Terminal for all three streams, which becomes the controlling terminal.
    Terminal(&'a CStr),
}

/// Starts the program as the leader of a new session, with no signal blocked and SIGPIPE not ignored. Fails with
/// `ENOENT` if the file, its interpreter or its working directory does not exist.
pub fn spawn(program: &Program, stdio: Stdio<'_>) -> io::Result<Pid> {
    let (argv, env) = (pointers(&program.argv), pointers(&program.env));
    let mut plan = Plan {
        path: &program.path,
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: program.cwd.as_deref(),
        stdio,
        errno: 0,
    };
    let plan = &raw mut plan;
    let mut stack = Vec::<u8>::with_capacity(STACK_BYTES);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `clone` gets the end of `STACK_BYTES` of exclusively owned memory, and aligns it. The plan, all it points
    // to and the stack outlive the child's use: with CLONE_VFORK the call returns after the child's exec or end.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK_BYTES);
        libc::clone(child, top.cast(), flags, plan.cast())
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the child no longer uses the plan. Volatile, because the compiler cannot see the child's write.
    let errno = unsafe { (&raw const (*plan).errno).read_volatile() };
    if errno != 0 {
        // SAFETY: a null status is allowed. The child has ended already.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(errno));
    }
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("clone returned no process ID"))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Instructions for the child, prepared before it starts, because it must not allocate.
struct Plan<'a> {
    path: &'a CStr,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: Option<&'a CStr>,
    stdio: Stdio<'a>,
    /// Error number, written by the child.
    errno: i32,
}

extern "C" fn child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn` passes its plan, which no other code accesses while this runs.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    // SAFETY: as `execute` requires.
    let Err(error) = unsafe { execute(plan) };
    plan.errno = error.raw_os_error().unwrap_or(libc::EIO);
    127
}

/// Sets up the process as planned and executes the program. Only returns on errors.
///
/// # Safety
/// Only for a child of `spawn`: it changes the process it runs in. The plan's lists must end in null pointers.
unsafe fn execute(plan: &Plan<'_>) -> io::Result<std::convert::Infallible> {
    // SAFETY: these are plain system calls on C strings and local memory.
    unsafe {
        check(libc::setsid())?;
        if let Some(cwd) = plan.cwd {
            check(libc::chdir(cwd.as_ptr()))?;
        }
        match plan.stdio {
            Stdio::Descriptors(descriptors) => {
                for (number, fd) in (0..).zip(descriptors) {
                    check(libc::dup2(fd.as_raw_fd(), number))?;
                }
            }
            Stdio::Terminal(path) => {
                let fd = check(libc::open(path.as_ptr(), libc::O_RDWR))?;
                for number in 0..3 {
                    check(libc::dup2(fd, number))?;
                }
                if fd > 2 {
                    libc::close(fd);
                }
            }
        }
        // The agent ignores SIGPIPE; a command must not. Exec resets handled signals.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::execve(plan.path.as_ptr(), plan.argv, plan.env);
    }
    Err(io::Error::last_os_error())
}

fn check(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
