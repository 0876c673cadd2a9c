//! `wisp modify`: changes an instance's attributes.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{MetadataArgs, NETWORK, flag_pair};
use super::launch_parameters::read_user_data;
use super::output::{self, Output};
use super::size::SizeArgs;
use super::{args, open_cloud, report};
use cloud::modify::Modification;
use cloud::shapes;
use ec2::catalog;
use ec2::credits::CreditMode;
use ec2::state::ShutdownBehavior;

/// Change an instance's attributes.
///
/// The type, vCPUs, memory and user data can be changed only while the instance is stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp stop web && wisp modify web --type t3.small && wisp start web
  wisp modify web --cpu-credits unlimited
  wisp modify web --termination-protection
  wisp modify web --shutdown-behavior terminate
  wisp modify web --imds required")]
pub struct Args {
    #[arg(value_name = "INSTANCE", help = args::INSTANCE)]
    instance: String,

    #[command(flatten)]
    size: SizeArgs,

    /// New user data file, or - for standard input. A script does not run again after the first boot.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// Action when the guest powers off: stop or terminate.
    #[arg(long, value_name = "BEHAVIOR")]
    shutdown_behavior: Option<ShutdownBehavior>,

    /// CPU credit mode: standard or unlimited.
    #[arg(long, value_name = "MODE")]
    cpu_credits: Option<CreditMode>,

    /// Replace the security groups; can be repeated.
    #[arg(long = "security-group", value_name = "GROUP", help_heading = NETWORK)]
    security_groups: Vec<String>,

    #[command(flatten)]
    metadata: MetadataArgs,

    /// Enable termination protection.
    #[arg(long)]
    termination_protection: bool,

    /// Disable termination protection.
    #[arg(long, conflicts_with = "termination_protection")]
    no_termination_protection: bool,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let record = cloud.instances().find(&args.instance)?;
    let size = if args.size.is_empty() {
        None
    } else {
        let request = args.size.of_type(catalog::find(&record.spec.size.instance_type)?)?;
        args.size.check(&request)?;
        Some((request, args.size.overrides()))
    };
    let change = Modification {
        size,
        user_data: args.user_data.as_deref().map(read_user_data).transpose()?,
        shutdown_behavior: args.shutdown_behavior,
        termination_protection: flag_pair(args.termination_protection, args.no_termination_protection),
        cpu_credits: args.cpu_credits,
        metadata_options: args.metadata.change(),
        security_groups: args.security_groups.clone(),
    };
    anyhow::ensure!(
        !change.is_empty(),
        "specify at least one attribute to change, such as --type; `wisp modify --help` lists them"
    );
    let record = report(cloud.instances().modify(record.meta.id, &change)?);
    match output {
        Output::Json => output::print_json(&shapes::instance(&record, &cloud.security_groups().names()?))?,
        Output::Table => {
            output::print(&format!("{}  modified", record.meta.id))?;
            output::next_command(["show", &args.instance]);
        }
    }
    Ok(ExitCode::SUCCESS)
}
