//! `wisp start`: stopped instances run again.

use std::process::ExitCode;

use super::output::{self, Output};
use super::wait::{self, Wait};
use super::{open_cloud, print_changes};

/// Starts stopped instances: same volumes, same identity, a fresh boot. Hibernated ones go on where they were.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp start web
  wisp start i-0a1b i-0c2d --wait running")]
pub struct Args {
    /// Instances: ids, beginnings of ids, or names.
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,

    /// Allow more vCPUs than this host has CPUs.
    #[arg(long)]
    overcommit: bool,

    /// Boot, where an instance was hibernated: its memory is lost.
    #[arg(long)]
    cold: bool,

    /// What to wait for.
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    wait: Wait,

    /// How long the guests may take to be ready, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

/// Starts them.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    crate::host::probe::kvm_access()?;
    let mut cloud = open_cloud()?;
    let records = cloud.instances(&args.instances)?;
    let (mut changes, mut started, mut monitors) = (Vec::new(), Vec::new(), Vec::new());
    for record in records {
        let (change, monitor) = cloud.start(record.id, args.overcommit, args.cold)?;
        changes.push(change);
        if let Some(monitor) = monitor {
            started.push(record);
            monitors.push(monitor);
        }
    }
    if args.wait == Wait::Ready {
        wait::until_ready(&started, monitors, wait::boot_timeout(args.timeout))?;
    }
    print_changes("StartingInstances", &changes, output)?;
    if output == Output::Table {
        output::next_command(["exec", &args.instances[0]]);
    }
    Ok(ExitCode::SUCCESS)
}
