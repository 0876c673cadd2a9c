//! `wisp vmm`: runs the supervisor and VMM processes. Other commands start it.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use machine::launch::Restore;
use node::{probe, router};
use vmm::process::{self, Arguments, HostFunctions};

/// Run the virtual machine of an instance directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Internal command, started by wisp. Use `wisp run` or `wisp launch` instead.")]
pub struct Args {
    /// Instance directory.
    dir: PathBuf,

    /// File descriptor of the instance's lock.
    #[arg(long)]
    lock_fd: RawFd,

    /// File descriptor of the owner's connection; the machine ends when it closes.
    #[arg(long)]
    owner_fd: Option<RawFd>,

    /// File descriptor of a connection to notify when the machine has started.
    #[arg(long, conflicts_with = "owner_fd")]
    watcher_fd: Option<RawFd>,

    /// File descriptor of the connection to attach to the serial console.
    #[arg(long)]
    console_fd: Option<RawFd>,

    /// File descriptor of the network backend.
    #[arg(long)]
    network_fd: Option<RawFd>,

    /// Start time of the user's command, in nanoseconds of the monotonic clock.
    #[arg(long)]
    began_ns: Option<u64>,

    /// Snapshot directory to restore; after a reboot, the guest cold-boots.
    #[arg(long)]
    restore: Option<PathBuf>,

    /// Boot without the instance's identity until the guest was saved as a template.
    #[arg(long, conflicts_with = "restore")]
    template: bool,

    /// Number of consecutive times that the guest rebooted shortly after it started.
    #[arg(long, default_value_t = 0)]
    short_runs: u32,

    /// Delete the snapshot's state before the vCPUs run, so that it is restored only once.
    #[arg(long, requires = "restore")]
    once: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let arguments = Arguments {
        dir: args.dir,
        lock: args.lock_fd,
        owner: args.owner_fd,
        watcher: args.watcher_fd,
        console: args.console_fd,
        network: args.network_fd,
        began_ns: args.began_ns,
        restore: args.restore.map(|dir| Restore { dir, once: args.once }),
        template: args.template,
        short_runs: args.short_runs,
    };
    let host = HostFunctions {
        namespace_of: router::namespace_of,
        explain_create_vm: |errno| probe::create_vm_error(errno).to_string(),
    };
    Ok(process::run(&arguments, host)?)
}
