//! `wisp metadata-defaults`: shows or sets the default metadata options of new instances.

use std::process::ExitCode;

use super::args::MetadataArgs;
use super::open_cloud;
use super::output::{self, Output};
use ec2::api::metadata::InstanceMetadataDefaultsResponse;
use ec2::metadata::MetadataChange;

/// Show or set the default metadata options of new instances.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp metadata-defaults                        show the defaults
  wisp metadata-defaults --imds required        require IMDSv2 in new instances
  wisp metadata-defaults --reset                remove the defaults; the image's settings apply

Options given at launch override these defaults. Existing instances are not affected.")]
pub struct Args {
    #[command(flatten)]
    metadata: MetadataArgs,

    /// Remove the defaults.
    #[arg(long)]
    reset: bool,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let before = if args.reset { MetadataChange::default() } else { cloud.settings().metadata_defaults()? };
    let change = args.metadata.change();
    let now = before.then(change.unwrap_or_default());
    if args.reset || change.is_some() {
        cloud.settings().set_metadata_defaults(now)?;
    }
    match output {
        Output::Json => {
            output::print_json(&output::member("AccountLevel", InstanceMetadataDefaultsResponse::from(now)))?;
        }
        Output::Table => {
            let lines: String = now.named().iter().map(|(name, value)| format!("{name:<25} {value}\n")).collect();
            output::print(if lines.is_empty() {
                "No defaults are set. The image's settings apply.\n"
            } else {
                &lines
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
