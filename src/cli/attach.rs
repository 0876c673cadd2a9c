//! `wisp attach`: an interactive serial console.

use std::process::ExitCode;

use anyhow::Context;

use super::output;
use super::{open_cloud, serial};
use crate::vmm::console_socket::SOCKET;
use crate::vmm::untrusted;

/// Attach this terminal to an instance's serial console.
///
/// Ctrl-] detaches. The guest keeps running.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wisp launch --name web --cmdline wisp.console=shell && wisp attach web      press return for a prompt")]
pub struct Args {
    /// Instance: id, prefix of the id, or name.
    #[arg(value_name = "INSTANCE")]
    instance: String,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (record, dir) = open_cloud()?.reachable(&args.instance)?;
    let stream = untrusted::connect(&dir.vmm_directory().join(SOCKET))
        .with_context(|| format!("{}: its console cannot be reached", record.id))?;
    output::say("Joined; ctrl-] leaves.");
    match serial::join(stream)? {
        serial::Left::ByEscape => output::say("\nDetached. The instance is still running."),
        serial::Left::GuestEnded => output::say("\nThe machine has ended."),
    }
    Ok(ExitCode::SUCCESS)
}
