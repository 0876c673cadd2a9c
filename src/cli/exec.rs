//! `wisp exec`: a command, or a shell, in an instance's guest.

use std::ffi::OsString;
use std::process::ExitCode;

use super::guest_command::{self, Outcome};
use super::open_cloud;
use super::wait::AGENT_TIMEOUT;

/// Runs a command (or a shell) in an instance's guest. It needs no network and no key.
///
/// The exit code is the command's; standard input, output and error are passed through, signals are forwarded.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp exec web                        a shell
  wisp exec web -- df -h
  tar c . | wisp exec web -- tar x -C /srv")]
pub struct Args {
    /// The instance: its id, the beginning of it, or its name.
    #[arg(value_name = "INSTANCE")]
    instance: String,

    /// The guest's user that the command runs as; root if left out.
    #[arg(long, short, value_name = "NAME")]
    user: Option<String>,

    /// The command and its arguments; a login shell if left out.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (record, folder) = open_cloud()?.reachable(&args.instance)?;
    let agent = folder.agent(AGENT_TIMEOUT)?;
    match guest_command::run(agent, &args.command, args.user)? {
        Outcome::Exited(code) | Outcome::Interrupted(code) => Ok(ExitCode::from(code)),
        Outcome::GuestGone => anyhow::bail!("{}: the guest ended while the command ran", record.id),
    }
}
