//! `wisp start`: starts stopped instances.

use std::process::ExitCode;

use super::output::{self, Output};
use super::wait::{self, Wait};
use super::{open_cloud, print_changes};

/// Start stopped instances with the same volumes and identity.
///
/// Hibernated instances are restored with their memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp start web
  wisp start i-0a1b i-0c2d --wait running")]
pub struct Args {
    /// Instances: ids, prefixes of ids, or names.
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,

    /// Allow more vCPUs than this host has CPUs.
    #[arg(long)]
    overcommit: bool,

    /// Cold-boot a hibernated instance; its memory is lost.
    #[arg(long)]
    cold: bool,

    /// Wait for this.
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    wait: Wait,

    /// Timeout for the guests to become ready, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

/// Runs the command.
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
