//! `wisp router`: a VPC's router, which other commands start.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::vmm::inherit;
use crate::host::router::{self, NamespaceSource};

/// Run the router of a network directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Started by wisp itself, when an instance is connected to its network.")]
pub struct Args {
    /// Network directory.
    dir: PathBuf,

    /// Descriptor of the listening socket.
    #[arg(long)]
    listener_fd: RawFd,

    #[command(flatten)]
    place: PlaceArgs,
}

/// The network namespace.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// Address of the first instance; creates new namespaces.
    #[arg(long)]
    first: Option<Ipv4Addr>,

    /// Descriptor of the network namespace of a killed router.
    #[arg(long)]
    namespace_fd: Option<RawFd>,
}

impl PlaceArgs {
    fn place(&self) -> anyhow::Result<NamespaceSource> {
        match (self.first, self.namespace_fd) {
            (Some(first), _) => Ok(NamespaceSource::New(first)),
            (None, Some(fd)) => Ok(NamespaceSource::Held(inherit(fd)?)),
            (None, None) => anyhow::bail!("a router is started for an instance, or in the place of another"),
        }
    }
}

/// Runs the router until its last instance has ended.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let listener = inherit(args.listener_fd)?;
    router::run(&args.dir, listener, args.place.place()?).context("the network's router cannot continue")?;
    Ok(ExitCode::SUCCESS)
}
