//! `wisp reboot`: reboots guests.

use std::process::ExitCode;

use super::open_cloud;
use super::output::{self, Output};
use super::wait::{self, Wait};

/// Reboot running instances.
///
/// The agent reboots the guest; if it does not respond, ctrl-alt-del is pressed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wisp reboot web && wisp exec web -- uptime")]
pub struct Args {
    /// Instances: ids, prefixes of ids, or names.
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,

    /// Wait for this.
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    wait: Wait,

    /// Timeout for the guests to become ready, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

/// Runs the command.
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
        // The API's response is empty.
        Output::Json => output::print_json(&serde_json::json!({}))?,
        Output::Table => {
            output::print(&records.iter().map(|record| format!("{}  rebooted\n", record.id)).collect::<String>())?;
            output::next_command(["exec", &args.instances[0], "--", "uptime"]);
        }
    }
    Ok(ExitCode::SUCCESS)
}
