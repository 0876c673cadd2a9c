//! `wisp reboot`: reboots guests.

use std::process::ExitCode;

use serde::Serialize;

use super::args::{self, WaitArgs};
use super::output::{self, Output};
use super::{open_cloud, wait};

/// Reboot running instances.
///
/// The agent reboots the guest. If the agent does not respond, the VMM sends Ctrl-Alt-Del.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wisp reboot web && wisp exec web -- uptime")]
pub struct Args {
    #[arg(value_name = "INSTANCE", required = true, help = args::INSTANCES)]
    instances: Vec<String>,

    #[command(flatten)]
    wait: WaitArgs,
}

/// The response of EC2's `RebootInstances`.
#[derive(Serialize)]
struct Empty {}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let records = cloud.instances().find_all(&args.instances)?;
    let mut machines = Vec::new();
    for record in &records {
        machines.push(cloud.instances().reboot(record.meta.id)?);
    }
    if let Some(timeout) = args.wait.timeout() {
        wait::until_ready(&records, machines, timeout)?;
    }
    match output {
        Output::Json => output::print_json(&Empty {})?,
        Output::Table => {
            output::print(&records.iter().map(|record| format!("{}  rebooted\n", record.meta.id)).collect::<String>())?;
            output::next_command(["exec", &args.instances[0], "--", "uptime"]);
        }
    }
    Ok(ExitCode::SUCCESS)
}
