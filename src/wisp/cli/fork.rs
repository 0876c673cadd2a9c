//! `wisp fork`: forks a running instance with its memory and disks.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{self, WaitArgs};
use super::output::{self, Output};
use super::{open_cloud, report, wait};
use cloud::fork::{ForkSpec, Forked};
use cloud::shapes;

/// Fork a running instance with its memory and disks.
///
/// The original keeps running. Programs keep running in each fork, which gets its own host name, addresses and random
/// numbers. User data does not run again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp fork web                              one fork
  wisp fork web --count 10                   ten forks")]
pub struct Args {
    #[arg(value_name = "INSTANCE", help = args::INSTANCE)]
    instance: String,

    /// Number of forks.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,

    /// Name tag of the forks.
    #[arg(long)]
    name: Option<String>,

    /// Allow an instance with more vCPUs than this host has CPUs.
    #[arg(long)]
    overcommit: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    node::probe::kvm_access()?;
    let cloud = open_cloud()?;
    let instance = cloud.instances().find(&args.instance)?.meta.id;
    let spec = ForkSpec { instance, count: args.count, name: args.name, overcommit: args.overcommit };
    let Forked { instances, machines, paused } = report(cloud.instances().fork(&spec)?);
    match output {
        Output::Json => output::print_json(&shapes::reservation(&instances, &cloud.security_groups().names()?))?,
        Output::Table => {
            output::print(&instances.iter().map(|record| format!("{}\n", record.meta.id)).collect::<String>())?;
        }
    }
    if let Some(timeout) = args.wait.timeout() {
        wait::until_ready(&instances, machines, timeout)?;
    }
    if output == Output::Table {
        output::say(&format!(
            "{instance} was paused for {}.",
            output::duration(Duration::from_nanos(paused.as_nanos() as u64))
        ));
        output::next(&format!("exec {} -- uptime", instances[0].meta.id));
    }
    Ok(ExitCode::SUCCESS)
}
