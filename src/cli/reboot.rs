//! `wisp reboot`: guests restart; their instances stay what they are.

use std::process::ExitCode;

use super::open_cloud;
use super::output::{self, Output};

/// Reboots running instances. The agent is asked; where it does not answer, ctrl-alt-del is pressed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wisp reboot web")]
pub struct Args {
    /// Instances: ids, beginnings of ids, or names.
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,
}

/// Reboots them; like EC2, it does not wait for the guests to be up again.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    for record in cloud.instances(&args.instances)? {
        cloud.reboot(record.id)?;
        if output == Output::Table {
            output::print(&format!("{}  rebooting", record.id))?;
        }
    }
    match output {
        Output::Json => output::print_json(&serde_json::json!({}))?,
        Output::Table => output::next(&format!("console {} --follow", args.instances[0])),
    }
    Ok(ExitCode::SUCCESS)
}
