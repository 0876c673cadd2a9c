//! `wisp router`: a VPC's router, started by other commands, never by hand.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::vmm::inherit;
use crate::host::router::{self, Place};

/// Runs the router of a network's folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Started by wisp itself, when an instance is connected to its network.")]
pub struct Args {
    /// The network's folder.
    folder: PathBuf,

    /// The descriptor of the socket on which it is asked.
    #[arg(long)]
    listener_fd: RawFd,

    #[command(flatten)]
    place: PlaceArgs,
}

/// Where it is.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// The address of the instance that it is started for, in namespaces of its own.
    #[arg(long)]
    first: Option<Ipv4Addr>,

    /// The descriptor of the network namespace of one that was killed.
    #[arg(long)]
    namespace_fd: Option<RawFd>,
}

impl PlaceArgs {
    fn place(&self) -> anyhow::Result<Place> {
        match (self.first, self.namespace_fd) {
            (Some(first), _) => Ok(Place::New(first)),
            (None, Some(fd)) => Ok(Place::Held(inherit(fd)?)),
            (None, None) => anyhow::bail!("a router is started for an instance, or in the place of another"),
        }
    }
}

/// Runs it until its last instance has gone.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let listener = inherit(args.listener_fd)?;
    router::run(&args.folder, listener, args.place.place()?).context("the network's router cannot go on")?;
    Ok(ExitCode::SUCCESS)
}
