//! `wisp tag`: an instance's tags.

use std::process::ExitCode;

use super::launch::parse_tag;
use super::output::{self, Output};
use super::{open_cloud, shapes};

/// Sets tags of an instance, removes some, or prints them all.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp tag web                            its tags
  wisp tag web stage=test Name=web-2      set two; Name is what it is called
  wisp tag web --remove stage")]
pub struct Args {
    /// The instance: its id, the beginning of it, or its name.
    #[arg(value_name = "INSTANCE")]
    instance: String,

    /// Tags to set.
    #[arg(value_name = "KEY=VALUE", value_parser = parse_tag)]
    set: Vec<(String, String)>,

    /// A tag to remove; repeat for more.
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
}

/// Sets, removes and prints them.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let mut record = cloud.instance(&args.instance)?;
    if !args.set.is_empty() || !args.remove.is_empty() {
        record = cloud.tag(record.id, &args.set, &args.remove)?;
    }
    match output {
        Output::Json => output::print_json(&serde_json::json!({"Tags": shapes::tags(&record.tags)}))?,
        Output::Table => {
            output::print(&record.tags.iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
