//! `wisp terminate`: terminates instances.

use std::process::ExitCode;

use super::output::{self, Output};
use super::{args, open_cloud, print_changes, report, wait};

/// Terminate instances.
///
/// Volumes attached with delete-on-termination are deleted. Terminated instances stay listed for an hour.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp terminate web
  wisp terminate $(wisp ls -q)      all instances")]
pub struct Args {
    #[arg(value_name = "INSTANCE", required = true, help = args::INSTANCES)]
    instances: Vec<String>,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let references = report(cloud.instances().terminate_damaged(&args.instances)?);
    let ids: Vec<_> = cloud.instances().find_all(&references)?.iter().map(|record| record.meta.id).collect();
    let ending = cloud.instances().begin_terminate(&ids)?;
    let changes = ending.changes.clone();
    let spinner = wait::spinner("Terminating");
    let finished = cloud.instances().finish_terminate(ending);
    spinner.finish_and_clear();
    report(finished)?;
    print_changes("TerminatingInstances", &changes, output)?;
    if output == Output::Table {
        output::next("ls");
    }
    Ok(ExitCode::SUCCESS)
}
