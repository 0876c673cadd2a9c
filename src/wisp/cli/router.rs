//! `wisp router`: runs a VPC's router. Other commands start it.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use machine::descriptors::inherit;
use node::router::{self, NamespaceSource};

/// Run the router of a network directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Internal command, started by wisp for the first instance in a VPC.")]
pub struct Args {
    /// Network directory.
    dir: PathBuf,

    /// File descriptor of the listening socket.
    #[arg(long)]
    listener_fd: RawFd,

    /// File descriptor of a killed router's network namespace, to use it again [default: new namespaces].
    #[arg(long)]
    namespace_fd: Option<RawFd>,
}

/// Runs the router until the last instance in its VPC has ended.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let listener = inherit(args.listener_fd)?;
    let held = args.namespace_fd.map(inherit).transpose()?;
    router::run(&args.dir, listener, held.map_or(NamespaceSource::New, NamespaceSource::Held))
        .context("the VPC's router failed")?;
    Ok(ExitCode::SUCCESS)
}
