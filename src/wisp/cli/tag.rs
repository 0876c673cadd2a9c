//! `wisp tag`: sets, removes and prints the tags of resources.

use std::process::ExitCode;

use super::escape::escape_line;
use super::output::{self, Output};
use super::{open_cloud, report};
use ec2::api;
use ec2::tag::Tag;

/// Set, remove or print the tags of a resource.
///
/// Instances, volumes, snapshots, images, VPCs, subnets, security groups, gateways, route tables, launch templates
/// and elastic addresses can be tagged.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp tag web                            print the tags of web
  wisp tag web stage=test Name=web-2      set two tags; Name renames the instance
  wisp tag vol-0a1b Name=data
  wisp tag web --remove stage")]
pub struct Args {
    /// Resource ID, unique ID prefix or name.
    #[arg(value_name = "RESOURCE")]
    resource: String,

    /// Tags to set.
    #[arg(value_name = "KEY=VALUE")]
    set: Vec<Tag>,

    /// Tag key to remove; can be repeated.
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let resource = cloud.tags().find(&args.resource)?;
    let tags = report(cloud.tags().change(resource, &args.set, &args.remove)?);
    match output {
        Output::Json => output::print_json(&output::member("Tags", api::Tag::list(&tags)))?,
        Output::Table => {
            output::print(
                &tags
                    .iter()
                    .map(|(key, value)| format!("{}={}\n", escape_line(key), escape_line(value)))
                    .collect::<String>(),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
