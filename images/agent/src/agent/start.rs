//! Starts the command of a request: its user, environment and streams.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::thread;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::children::{Child, Children};
use super::environment::{self, Lookup, look_up};
use super::spawn::{Program, Stdio, spawn};
use super::users::User;
use crate::protocol::{ExecFailure, ExecRequest, TerminalRequest, WindowSize};

/// A running command, and the agent's ends of its streams.
#[derive(Debug)]
pub struct Running {
    pub child: Child,
    /// Standard input, in non-blocking mode.
    pub input: OwnedFd,
    /// Standard output, or the terminal.
    pub output: OwnedFd,
    /// Standard error, unless the command has a terminal.
    pub error: Option<OwnedFd>,
    /// The command's ends of its output pipes. Otherwise, a pipe that hangs up would wake the session, often twice,
    /// before the command has ended.
    pub held: Vec<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    pub cause: ExecFailure,
    message: String,
}

impl StartError {
    fn other(message: String) -> Self {
        Self { cause: ExecFailure::Other, message }
    }
}

/// Starts the requested command. The cause of an error determines the exit code.
pub fn start(children: &Children, request: &ExecRequest) -> Result<Running, StartError> {
    let Some(name) = &request.user else {
        return start_as(children, request, &User::own());
    };
    let user = User::named(name).ok_or_else(|| StartError::other(format!("the guest has no user {name:?}")))?;
    if user == User::own() {
        return start_as(children, request, &user);
    }
    // Linux keeps credentials per thread (credentials(7)), and a child inherits those of the thread that creates it. So
    // a helper thread switches to the requested user, looks up the program, opens the terminal and starts the command
    // with that user's rights, then exits. The agent's other threads keep their credentials.
    thread::scope(|scope| {
        let helper = thread::Builder::new().name("start-as-user".into()).spawn_scoped(scope, || {
            assume(&user)
                .map_err(|errno| StartError::other(format!("cannot switch to the user {name:?}: {}", words(errno))))?;
            start_as(children, request, &user)
        });
        match helper.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StartError::other(format!("cannot start the command as the user {name:?}"))),
            Err(error) => Err(StartError::other(format!("cannot create a thread to start the command: {error}"))),
        }
    })
}

/// Makes only this thread run as `user`.
fn assume(user: &User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups().into_iter().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

fn start_as(children: &Children, request: &ExecRequest, user: &User) -> Result<Running, StartError> {
    let program = program(request, user)?;
    let started = match &request.terminal {
        Some(terminal) => on_terminal(children, &program, terminal),
        None => on_pipes(children, &program),
    };
    started.map_err(|error| explain(&error, &program, &request.argv[0]))
}

fn program(request: &ExecRequest, user: &User) -> Result<Program, StartError> {
    let Some(name) = request.argv.first() else {
        return Err(StartError::other("no command specified".to_owned()));
    };
    let mut variables = environment::for_user(user);
    if let Some(terminal) = &request.terminal {
        environment::set(&mut variables, OsStr::new("TERM"), &terminal.term);
    }
    for (name, value) in &request.env {
        environment::set(&mut variables, name, value);
    }
    let path = variables.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(""), |(_, value)| value);
    let file = match look_up(name, path) {
        Lookup::Found(file) => file,
        Lookup::NotFound => return Err(not_found(name)),
        Lookup::NotExecutable => return Err(not_executable(name, "permission denied")),
    };
    let invalid = |error: io::Error| StartError::other(format!("invalid command: {error}"));
    let cwd = match &request.cwd {
        Some(cwd) => Some(cwd.clone()),
        None => request.user.as_ref().filter(|_| Path::new(&user.home).is_dir()).map(|_| OsString::from(&user.home)),
    };
    Ok(Program {
        path: c_string(file).map_err(invalid)?,
        argv: request.argv.iter().cloned().map(c_string).collect::<io::Result<_>>().map_err(invalid)?,
        env: environment::to_c_strings(variables).map_err(invalid)?,
        cwd: cwd.map(c_string).transpose().map_err(invalid)?,
    })
}

fn c_string(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

fn on_pipes(children: &Children, program: &Program) -> io::Result<Running> {
    let (stdin, input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (error, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    // The other end is a separate open file, so the command's input stays in blocking mode.
    rustix::fs::fcntl_setfl(&input, OFlags::NONBLOCK)?;
    let stdio = Stdio::Descriptors([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    let child = children.spawn(|| spawn(program, stdio))?;
    Ok(Running { child, input, output, error: Some(error), held: vec![stdout, stderr] })
}

fn on_terminal(children: &Children, program: &Program, request: &TerminalRequest) -> io::Result<Running> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    resize(&master, request.size)?;
    let mut modes = tcgetattr(&master)?;
    // IUTF8: a backspace removes a whole character.
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&master, OptionalActions::Now, &modes)?;
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    let child = children.spawn(|| spawn(program, Stdio::Terminal(&name)))?;
    let input = master.try_clone()?;
    Ok(Running { child, input, output: master, error: None, held: Vec::new() })
}

/// Sets a terminal's size. A change sends SIGWINCH to its foreground process group.
pub fn resize(master: impl AsFd, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size)
}

fn explain(error: &io::Error, program: &Program, name: &OsStr) -> StartError {
    let cwd = program.cwd.as_ref().map(|cwd| OsString::from_vec(cwd.as_bytes().to_vec()));
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EACCES | libc::ENOTDIR)
            if cwd.as_ref().is_some_and(|cwd| !Path::new(cwd).is_dir()) =>
        {
            let cwd = cwd.unwrap_or_default();
            StartError::other(format!(
                "the working directory {} is missing, not a directory or not accessible",
                cwd.display()
            ))
        }
        Some(libc::ENOENT | libc::ENOTDIR) => not_found(name),
        Some(libc::EACCES | libc::EPERM) => not_executable(name, "permission denied"),
        Some(libc::ENOEXEC) => not_executable(name, "not a program or script for this system"),
        Some(libc::EISDIR) => not_executable(name, "is a directory"),
        _ => StartError::other(format!("{}: cannot start: {error}", name.display())),
    }
}

fn not_found(name: &OsStr) -> StartError {
    StartError { cause: ExecFailure::NotFound, message: format!("{}: command not found", name.display()) }
}

fn not_executable(name: &OsStr, why: &str) -> StartError {
    StartError { cause: ExecFailure::NotExecutable, message: format!("{}: cannot execute: {why}", name.display()) }
}

fn words(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}
