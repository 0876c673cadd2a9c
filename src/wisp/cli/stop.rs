//! `wisp stop`: stops instances.

use std::process::ExitCode;

use super::output::{self, Output};
use super::{args, open_cloud, print_changes, report, wait};
use node::host::StopMode;

/// Stop instances. Their volumes are kept.
///
/// The agent powers the guest off. If the guest is still running after 60 s (300 s on software KVM), or the agent does
/// not respond, the VMM sends Ctrl-Alt-Del. After another 20 s (60 s), the VMM is killed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp stop web
  wisp stop web --force      immediately, like pulling the plug
  wisp stop web --hibernate  save its memory for the next start")]
pub struct Args {
    #[arg(value_name = "INSTANCE", required = true, help = args::INSTANCES)]
    instances: Vec<String>,

    /// Stop immediately, without shutting down the guest; unwritten data is lost.
    #[arg(long)]
    force: bool,

    /// Save the guest's memory for `wisp start`; requires `wisp launch --hibernation`.
    #[arg(long, conflicts_with = "force")]
    hibernate: bool,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let ids: Vec<_> = cloud.instances().find_all(&args.instances)?.iter().map(|record| record.meta.id).collect();
    if args.hibernate {
        cloud.instances().check_hibernation(&ids)?;
    }
    let manner = match (args.hibernate, args.force) {
        (true, _) => StopMode::Hibernate,
        (_, true) => StopMode::Force,
        _ => StopMode::Orderly,
    };
    let ending = cloud.instances().begin_stop(&ids)?;
    let changes = ending.changes.clone();
    let spinner = wait::spinner(if args.hibernate { "Hibernating" } else { "Stopping" });
    let finished = cloud.instances().finish_stop(ending, manner);
    spinner.finish_and_clear();
    report(finished)?;
    print_changes("StoppingInstances", &changes, output)?;
    if output == Output::Table {
        output::next_command(["start", &args.instances[0]]);
    }
    Ok(ExitCode::SUCCESS)
}
