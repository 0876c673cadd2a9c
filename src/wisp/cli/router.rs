//! `wisp router`: runs a VPC's router. Other commands start it.

use std::net::Ipv4Addr;
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

    #[command(flatten)]
    place: PlaceArgs,
}

/// The source of the router's network namespace.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// Address of the VPC's first instance; creates new namespaces.
    #[arg(long)]
    first: Option<Ipv4Addr>,

    /// File descriptor of a killed router's network namespace, to use it again.
    #[arg(long)]
    namespace_fd: Option<RawFd>,
}

impl PlaceArgs {
    fn place(&self) -> anyhow::Result<NamespaceSource> {
        match (self.first, self.namespace_fd) {
            (Some(first), _) => Ok(NamespaceSource::New(first)),
            (None, Some(fd)) => Ok(NamespaceSource::Held(inherit(fd)?)),
            (None, None) => anyhow::bail!("specify --first or --namespace-fd"),
        }
    }
}

/// Runs the router until the last instance in its VPC has ended.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let listener = inherit(args.listener_fd)?;
    router::run(&args.dir, listener, args.place.place()?).context("the VPC's router failed")?;
    Ok(ExitCode::SUCCESS)
}
