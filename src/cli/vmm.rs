//! `wisp vmm`: the monitor's process, started by other commands, never by hand.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::host::monitor_process::{CONFIG, close_on_exec};
use crate::host::probe;
use crate::vmm::control::{self, Message};
use crate::vmm::end::End;
use crate::vmm::machine::Surroundings;
use crate::vmm::{Machine, MachineConfig};

/// Runs the machine of an instance's folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Started by wisp itself: `wisp run` is what you want.")]
pub struct Args {
    /// The instance's folder.
    folder: PathBuf,

    /// The descriptor of the instance's lock.
    #[arg(long)]
    lock_fd: RawFd,

    /// The descriptor of the owner's connection.
    #[arg(long)]
    owner_fd: RawFd,

    /// The descriptor of the console's terminal.
    #[arg(long)]
    console_fd: Option<RawFd>,

    /// When the user's command began, in nanoseconds of the monotonic clock.
    #[arg(long)]
    began_ns: Option<u64>,
}

/// Runs the machine to its end. Why it could not be built is told to the owner, who is there to tell the user.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // The lock is held for as long as this process lives.
    let _lock = inherit(args.lock_fd)?;
    let owner = UnixStream::from(inherit(args.owner_fd)?);
    let console = args.console_fd.map(inherit).transpose()?.map(UnixStream::from);
    let complaint = owner.try_clone().context("the owner's connection cannot be used")?;
    let surroundings =
        Surroundings { folder: args.folder.clone(), owner: Some(owner), console, process_start_ns: args.began_ns };
    let end = build_and_run(&args.folder, surroundings).inspect_err(|error| {
        control::send_once(&complaint, &Message::Failed { why: explain(error) });
    });
    if has_left(&complaint) {
        // The owner was killed, or it would remove the folder itself.
        let _ = fs::remove_dir_all(&args.folder);
    }
    let end = end?;
    Ok(if end.is_orderly() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The error, with the advice of `wisp doctor` where KVM refused to make a virtual machine.
fn explain(error: &anyhow::Error) -> String {
    match error.downcast_ref::<crate::vmm::Error>() {
        Some(crate::vmm::Error::CreateVm(source)) => probe::create_vm_error(source.errno()).to_string(),
        _ => format!("{error:#}"),
    }
}

fn build_and_run(folder: &Path, surroundings: Surroundings) -> anyhow::Result<End> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let config: MachineConfig =
        serde_json::from_str(&text).with_context(|| format!("{} is not a machine's configuration", path.display()))?;
    Ok(Machine::new(config, surroundings)?.run()?)
}

/// Whether the other end of the owner's connection is closed.
fn has_left(owner: &UnixStream) -> bool {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0];
    matches!(recv(owner, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((0, _)))
}

/// Takes over a descriptor that was left open for this process.
fn inherit(fd: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD only looks the number up.
    anyhow::ensure!(fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1, "no descriptor {fd} was inherited");
    // SAFETY: it is open, as was just seen, and its number came from the process that left it to this one alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    close_on_exec(&fd)?;
    Ok(fd)
}
