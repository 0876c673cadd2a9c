//! `wisp aws`: runs the AWS CLI with a server of its own.

use std::ffi::OsString;
use std::process::ExitCode;

use super::serve;
use api::access_key;
use node::home::Home;

/// Run the AWS CLI on Wisp's resources.
///
/// Starts a server (see `wisp serve`) for the life of the command. The exit code is the AWS CLI's. Options of the AWS
/// CLI follow the name of the service.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  wisp aws ec2 describe-instances
  wisp aws ec2 describe-images --filters Name=name,Values=tiny --output text"
)]
pub struct Args {
    /// Arguments of the AWS CLI.
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let home = Home::open()?;
    let key = access_key::of(&home)?;
    let command: Vec<OsString> = std::iter::once("aws".into()).chain(args.arguments).collect();
    serve::run_with_server(&home, key, 0, &command)
}
