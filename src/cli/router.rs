//! `wisp router`: a VPC's router, started by other commands, never by hand.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::vmm::inherit;
use crate::host::router;

/// Runs the router of a network's folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Started by wisp itself, when an instance is connected to its network.")]
pub struct Args {
    /// The network's folder.
    folder: PathBuf,

    /// The descriptor of the socket on which it is asked.
    #[arg(long)]
    listener_fd: RawFd,

    /// The descriptor of the network namespace of one that was killed.
    #[arg(long)]
    namespace_fd: Option<RawFd>,
}

/// Runs it until its last instance has gone.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let listener = inherit(args.listener_fd)?;
    let namespace = args.namespace_fd.map(inherit).transpose()?;
    router::run(&args.folder, listener, namespace).context("the network's router cannot go on")?;
    Ok(ExitCode::SUCCESS)
}
