//! `wisp reboot`: guests restart; their instances stay what they are.

use std::process::ExitCode;

use super::open_cloud;
use super::output::{self, Output};
use super::wait::{self, Wait};

/// Reboots running instances. The agent is asked; where it does not answer, ctrl-alt-del is pressed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wisp reboot web && wisp exec web -- uptime")]
pub struct Args {
    /// Instances: ids, beginnings of ids, or names.
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,

    /// What to wait for.
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    wait: Wait,

    /// How long the guests may take to be ready, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

/// Reboots them.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let records = cloud.instances(&args.instances)?;
    let mut monitors = Vec::new();
    for record in &records {
        monitors.push(cloud.reboot(record.id)?);
    }
    if args.wait == Wait::Ready {
        wait::until_ready(&records, monitors, wait::boot_timeout(args.timeout))?;
    }
    match output {
        // The API's answer has nothing in it.
        Output::Json => output::print_json(&serde_json::json!({}))?,
        Output::Table => {
            output::print(&records.iter().map(|record| format!("{}  rebooted\n", record.id)).collect::<String>())?;
            output::next_command(["exec", &args.instances[0], "--", "uptime"]);
        }
    }
    Ok(ExitCode::SUCCESS)
}
