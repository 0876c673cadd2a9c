//! Runs a command or a shell in a guest, for `wisp run`, `wisp exec` and `wisp ssh`.

use std::ffi::OsString;
use std::io::IsTerminal;

use super::output;
use node::guest::{self, Agent, ExecRequest, ExitStatus, Streams, terminal};

/// The outcome of a command in a guest.
#[derive(Debug)]
pub enum Outcome {
    /// The exit code of the command, or 126 or 127 if it could not be started.
    Exited(u8),
    /// This process was interrupted by a signal: 128 plus the signal's number.
    Interrupted(u8),
    /// The guest ended during the command.
    GuestGone,
}

/// Returns true if no command is given and this process has a terminal: the guest then runs an interactive shell.
pub fn is_interactive(command: &[OsString]) -> bool {
    command.is_empty() && std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Runs `command`, or a login shell if it is empty, with this process's standard streams.
pub fn run(agent: Agent, command: &[OsString], user: Option<String>) -> anyhow::Result<Outcome> {
    let argv = if command.is_empty() { vec!["/bin/sh".into(), "-l".into()] } else { command.to_vec() };
    let terminal = if std::io::stdout().is_terminal() { terminal::request(std::io::stdin()) } else { None };
    let request = ExecRequest { argv, terminal, user, ..ExecRequest::default() };
    Ok(match agent.exec(request, Streams::own()) {
        Ok(status) => Outcome::Exited(exit_code(&status)),
        Err(guest::Error::GuestGone) => Outcome::GuestGone,
        Err(error @ guest::Error::CommandNotFound(_)) => Outcome::Exited(complain(error, 127)),
        Err(error @ guest::Error::NotExecutable(_)) => Outcome::Exited(complain(error, 126)),
        Err(guest::Error::Interrupted(signal)) => Outcome::Interrupted(exit_code(&ExitStatus::Signaled(signal))),
        Err(error) => return Err(error.into()),
    })
}

fn complain(error: guest::Error, code: u8) -> u8 {
    output::print_error(&error.into());
    code
}

fn exit_code(status: &ExitStatus) -> u8 {
    // Exit codes, and signal numbers plus 128, fit in eight bits.
    (status.exit_code() & 0xff) as u8
}
