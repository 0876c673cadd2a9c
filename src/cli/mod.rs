//! The command line: one file a subcommand, each with its arguments, its help and what it does.

pub mod output;

mod console;
mod doctor;
mod run;
mod timeline;
mod types;
mod vmm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::output::Output;
use crate::vmm::timeline::monotonic_ns;

/// EC2 on one Linux machine: real Linux guests under KVM, with EC2's nouns and manners.
#[derive(Debug, Parser)]
#[command(
    name = "wisp",
    version,
    max_term_width = 100,
    after_help = "\
Try first:
  wisp run                     a Linux guest, and a shell in it
  wisp run -- uname -a         one command in a guest
  wisp doctor                  can this host run guests?"
)]
struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Types(types::Args),
    Timeline(timeline::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    Vmm(vmm::Args),
}

/// Runs the command line; the exit code is 0, 1 (failed), 2 (usage), or that of a command in a guest.
pub fn main() -> ExitCode {
    let began_ns = monotonic_ns();
    let cli = Cli::parse();
    let log = env_logger::Env::new()
        .filter_or("WISP_LOG", if matches!(cli.command, Command::Vmm(_)) { "info" } else { "warn" });
    env_logger::Builder::from_env(log).format_target(false).init();
    let result = match cli.command {
        Command::Run(args) => run::run(args, began_ns),
        Command::Types(args) => types::run(&args, cli.output),
        Command::Timeline(args) => timeline::run(&args, cli.output),
        Command::Doctor(args) => doctor::run(&args, cli.output),
        Command::Vmm(args) => vmm::run(args),
    };
    result.unwrap_or_else(|error| {
        output::print_error(&error);
        ExitCode::FAILURE
    })
}
