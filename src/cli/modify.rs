//! `wisp modify`: changes an instance's attributes.

use std::path::PathBuf;
use std::process::ExitCode;

use super::launch::read_user_data;
use super::output::{self, Output};
use super::size::SizeArgs;
use super::{open_cloud, print_warnings, shapes};
use crate::cloud::modify::Modification;
use crate::ec2::catalogue;
use crate::ec2::credits::CreditMode;
use crate::ec2::metadata::MetadataChange;
use crate::ec2::state::ShutdownBehavior;

/// Change an instance's attributes.
///
/// The type and the user data can be changed while the instance is stopped, the others at any time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp stop web && wisp modify web --type t3.small && wisp start web
  wisp modify web --cpu-credits unlimited
  wisp modify web --termination-protection true
  wisp modify web --shutdown-behavior terminate
  wisp modify web --metadata-options HttpTokens=required")]
pub struct Args {
    /// Instance: id, prefix of the id, or name.
    #[arg(value_name = "INSTANCE")]
    instance: String,

    #[command(flatten)]
    size: SizeArgs,

    /// New user data of a stopped instance; - for standard input. It runs at the first boot only.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// Effect of the guest's own power-off: stop or terminate.
    #[arg(long, value_name = "BEHAVIOR")]
    shutdown_behavior: Option<ShutdownBehavior>,

    /// CPU credit mode: standard or unlimited.
    #[arg(long, value_name = "MODE")]
    cpu_credits: Option<CreditMode>,

    /// Replace the security groups; repeat for more.
    #[arg(long = "security-group", value_name = "GROUP")]
    security_groups: Vec<String>,

    /// Metadata options, separated by commas.
    ///
    /// HttpTokens=required|optional, HttpEndpoint=enabled|disabled, HttpPutResponseHopLimit=1-64,
    /// InstanceMetadataTags=enabled|disabled.
    #[arg(long, value_name = "OPTIONS")]
    metadata_options: Option<MetadataChange>,

    /// Termination protection: true or false.
    #[arg(long, value_name = "BOOL")]
    termination_protection: Option<bool>,
}

/// Runs the command.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let record = cloud.instance(&args.instance)?;
    let size = if args.size.is_empty() {
        None
    } else {
        let request = args.size.of_type(catalogue::find(&record.instance_type)?)?;
        args.size.check(&request)?;
        Some((request, args.size.overrides()))
    };
    let change = Modification {
        size,
        user_data: args.user_data.as_deref().map(read_user_data).transpose()?,
        shutdown_behavior: args.shutdown_behavior,
        termination_protection: args.termination_protection,
        cpu_credits: args.cpu_credits,
        metadata_options: args.metadata_options,
        security_groups: args.security_groups.clone(),
    };
    let record = cloud.modify(record.id, &change)?;
    print_warnings(&mut cloud);
    match output {
        Output::Json => output::print_json(&shapes::instance(&record, &cloud.group_names()?))?,
        Output::Table => {
            output::print(&format!("{}  modified", record.id))?;
            output::next_command(["show", &args.instance]);
        }
    }
    Ok(ExitCode::SUCCESS)
}
