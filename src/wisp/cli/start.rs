//! `wisp start`: starts stopped instances.

use std::process::ExitCode;

use super::args::{self, ADVANCED, WaitArgs};
use super::output::{self, Output};
use super::{open_cloud, print_changes, report, wait};
use cloud::lifecycle::Started;

/// Start stopped instances.
///
/// Instances keep their volumes and private addresses. Hibernated instances are restored with their memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp start web
  wisp start i-0a1b i-0c2d --no-wait")]
pub struct Args {
    #[arg(value_name = "INSTANCE", required = true, help = args::INSTANCES)]
    instances: Vec<String>,

    /// Allow an instance with more vCPUs than this host has CPUs.
    #[arg(long, help_heading = ADVANCED)]
    overcommit: bool,

    /// Cold-boot hibernated instances, and discard their saved memory.
    #[arg(long)]
    cold: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    node::probe::kvm_access()?;
    let cloud = open_cloud()?;
    let records = cloud.instances().find_all(&args.instances)?;
    let (mut changes, mut started, mut machines) = (Vec::new(), Vec::new(), Vec::new());
    for record in records {
        let Started { change, machine } =
            report(cloud.instances().start(record.meta.id, args.overcommit, args.cold)?);
        changes.push(change);
        if let Some(machine) = machine {
            started.push(record);
            machines.push(machine);
        }
    }
    if let Some(timeout) = args.wait.timeout() {
        wait::until_ready(&started, machines, timeout)?;
    }
    print_changes("StartingInstances", &changes, output)?;
    if output == Output::Table {
        output::next_command(["exec", &args.instances[0]]);
    }
    Ok(ExitCode::SUCCESS)
}
