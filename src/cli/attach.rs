//! `wisp attach`: an instance's serial terminal.

use std::process::ExitCode;

use anyhow::Context;

use super::output;
use super::{open_cloud, serial};
use crate::vmm::console_socket::SOCKET;
use crate::vmm::untrusted;

/// Joins this terminal to an instance's serial console, both ways. Ctrl-] leaves it; the guest goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wisp launch --name web --cmdline wisp.console=shell && wisp attach web      press return for a prompt")]
pub struct Args {
    /// The instance: its id, the beginning of it, or its name.
    #[arg(value_name = "INSTANCE")]
    instance: String,
}

/// Joins it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (record, folder) = open_cloud()?.reachable(&args.instance)?;
    let stream = untrusted::connect(&folder.vmm_directory().join(SOCKET))
        .with_context(|| format!("{}: its console cannot be reached", record.id))?;
    output::say("Joined; ctrl-] leaves.");
    match serial::join(stream)? {
        serial::Left::ByEscape => output::say("\nLeft; the guest goes on."),
        serial::Left::GuestEnded => output::say("\nThe machine has ended."),
    }
    Ok(ExitCode::SUCCESS)
}
