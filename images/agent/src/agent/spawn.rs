//! Starts a process in a session of its own, by `clone(CLONE_VM | CLONE_VFORK)` and `execve`.
//!
//! As with vfork, the child shares the agent's memory until its exec, and the thread that starts it
//! waits: no page table is copied. Under software KVM a fork of even this process costs tens of
//! milliseconds. `posix_spawn` works the same way, but glibc's child first asks for and sets the
//! action of every signal, which is 120 system calls and there as slow as a fork.
//!
//! The child takes a terminal as its controlling one by opening it as the leader of a new session.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;

/// The child's stack until its exec: a few calls deep, and a dynamic linker's look-ups in tests.
const STACK_BYTES: usize = 64 * 1024;

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

/// Starts the program as the leader of a new session, with no signal blocked, and SIGPIPE not ignored.
///
/// # Errors
/// What kept it from being executed: `ENOENT` for the file, its interpreter or its working directory.
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
    // SAFETY: the stack is `STACK_BYTES` of memory nobody else uses, of which `clone` is given the end
    // (it aligns that itself). The plan, all it points to and the stack outlive the child's use of
    // them: with CLONE_VFORK the call returns only when the child has executed the program or ended.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK_BYTES);
        libc::clone(child, top.cast(), flags, plan.cast())
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the child no longer uses the plan. Volatile, as the compiler cannot see who wrote to it.
    let errno = unsafe { (&raw const (*plan).errno).read_volatile() };
    if errno != 0 {
        // SAFETY: a null status is allowed. The child has ended already.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(errno));
    }
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("clone gave no process id"))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// What the child is to do. Prepared before it starts, because it must not allocate.
struct Plan<'a> {
    path: &'a CStr,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: Option<&'a CStr>,
    stdio: Stdio<'a>,
    /// Written by the child, where it fails.
    errno: i32,
}

/// The child's life, up to its exec.
extern "C" fn child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn` passes its plan, which nobody else touches while this runs.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    // SAFETY: as `execute` demands.
    let Err(error) = unsafe { execute(plan) };
    plan.errno = error.raw_os_error().unwrap_or(libc::EIO);
    127
}

/// Makes the process what the plan says, and executes the program: returns only what went wrong.
///
/// # Safety
/// For a child of `spawn`: it changes the process it runs in. The plan's lists end in null pointers.
unsafe fn execute(plan: &Plan<'_>) -> io::Result<std::convert::Infallible> {
    // SAFETY: plain system calls, on C strings and on memory of this function's own.
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
        // The agent ignores it; a command must not. Exec resets whatever is handled.
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
