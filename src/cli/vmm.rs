//! `wisp vmm`: the monitor's process, started by other commands, never by hand.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::host::monitor_process::{CONFIG, close_on_exec, keep_open};
use crate::host::probe;
use crate::vmm::console_socket;
use crate::vmm::control::{self, Message};
use crate::vmm::end::End;
use crate::vmm::end_record::EndRecord;
use crate::vmm::machine::{Launcher, Restore, Surroundings};
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

    /// The descriptor of the owner's connection: the machine ends when it closes.
    #[arg(long)]
    owner_fd: Option<RawFd>,

    /// The descriptor of the connection of who only waits for the machine to be up.
    #[arg(long, conflicts_with = "owner_fd")]
    watcher_fd: Option<RawFd>,

    /// The descriptor of the console's terminal.
    #[arg(long)]
    console_fd: Option<RawFd>,

    /// The descriptor of what the network device is connected to.
    #[arg(long)]
    network_fd: Option<RawFd>,

    /// When the user's command began, in nanoseconds of the monotonic clock.
    #[arg(long)]
    began_ns: Option<u64>,

    /// The folder of a saved machine to go on from; a guest that reboots later boots.
    #[arg(long)]
    restore: Option<PathBuf>,

    /// The saved machine is gone once it runs.
    #[arg(long, requires = "restore")]
    once: bool,
}

/// Runs the machine to its end. Why it could not be built is told to who started it, who is there to tell the user.
///
/// A machine without an owner is an instance: how it ended is kept in its folder for the next command, and a guest that
/// reboots goes on in the same process, which keeps its lock.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // The lock is held for as long as this process lives.
    let lock = inherit(args.lock_fd)?;
    let owner = args.owner_fd.map(inherit).transpose()?.map(UnixStream::from);
    let watcher = args.watcher_fd.map(inherit).transpose()?.map(UnixStream::from);
    let console = args.console_fd.map(inherit).transpose()?.map(UnixStream::from);
    let network = args.network_fd.map(inherit).transpose()?;
    let complaint = owner.as_ref().or(watcher.as_ref()).map(UnixStream::try_clone).transpose();
    let complaint = complaint.context("the connection of who started the machine cannot be used")?;
    let owned = owner.is_some();
    let launcher = match (owner, watcher) {
        (Some(owner), _) => Launcher::Owner(owner),
        (None, Some(watcher)) => Launcher::Watcher(watcher),
        (None, None) => Launcher::Nobody,
    };
    let surroundings = Surroundings {
        folder: args.folder.clone(),
        launcher,
        console,
        network: network.as_ref().map(OwnedFd::try_clone).transpose().context("the network cannot be used")?,
        process_start_ns: args.began_ns,
        restore: args.restore.clone().map(|folder| Restore { folder, once: args.once }),
    };
    let result = build_and_run(&args.folder, surroundings, owned);
    if let Err(error) = &result {
        let why = explain(error);
        if !owned {
            keep(&EndRecord::Failed { why: why.clone() }, &args.folder);
        }
        if let Some(stream) = &complaint {
            control::send_once(stream, &Message::Failed { why });
        }
    }
    if owned && complaint.as_ref().is_some_and(has_left) {
        // The owner was killed, or it would remove the folder itself.
        let _ = fs::remove_dir_all(&args.folder);
    }
    match result? {
        End::Reboot if !owned => Err(start_again(&args.folder, &lock, network.as_ref())),
        end if end.is_orderly() => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

/// Runs the machine anew in the place of this process, as a PC does after a reset; returns only why that failed.
fn start_again(folder: &Path, lock: &OwnedFd, network: Option<&OwnedFd>) -> anyhow::Error {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wisp").arg("vmm").arg(folder);
    for (option, fd) in [("--lock-fd", Some(lock)), ("--network-fd", network)] {
        match fd.map(keep_open).transpose() {
            Ok(number) => {
                command.args(number.map(|number| [option.to_string(), number.to_string()]).into_iter().flatten())
            }
            Err(error) => {
                return anyhow::Error::new(error).context("the lock and the network cannot be kept over the reboot");
            }
        };
    }
    anyhow::Error::new(command.exec()).context("the monitor cannot start again after the guest's reboot")
}

/// Writes how it ended. Whoever looks later finds a monitor that is gone, and no reason; this log tells more.
fn keep(record: &EndRecord, folder: &Path) {
    if let Err(error) = record.write(folder) {
        log::error!("how the machine ended cannot be kept: {error}");
    }
}

/// The error, with the advice of `wisp doctor` where KVM refused to make a virtual machine.
fn explain(error: &anyhow::Error) -> String {
    match error.downcast_ref::<crate::vmm::Error>() {
        Some(crate::vmm::Error::CreateVm(source)) => probe::create_vm_error(source.errno()).to_string(),
        _ => format!("{error:#}"),
    }
}

fn build_and_run(folder: &Path, surroundings: Surroundings, owned: bool) -> anyhow::Result<End> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let config: MachineConfig =
        serde_json::from_str(&text).with_context(|| format!("{} is not a machine's configuration", path.display()))?;
    clear_leftovers(folder, &config).context("what an earlier machine left cannot be removed")?;
    let conclude = |end: &End, status: &control::Status| {
        if !owned && *end != End::Reboot {
            keep(&EndRecord::ended(end, status), folder);
        }
    };
    Ok(Machine::new(config, surroundings)?.run(conclude)?)
}

/// Removes the sockets and the end of a machine that ran here before. This process holds the lock: nobody uses them.
fn clear_leftovers(folder: &Path, config: &MachineConfig) -> std::io::Result<()> {
    EndRecord::clear(folder)?;
    let vsock = config.vsock.as_ref().map(|vsock| vsock.path.clone());
    let control = folder.join(control::SOCKET);
    let sockets = [control.with_extension("new"), control, folder.join(console_socket::SOCKET)];
    for socket in sockets.into_iter().chain(vsock) {
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the other end of the owner's connection is closed.
fn has_left(owner: &UnixStream) -> bool {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0];
    matches!(recv(owner, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((0, _)))
}

/// Takes over a descriptor that was left open for this process.
pub(super) fn inherit(fd: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD only looks the number up.
    anyhow::ensure!(fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1, "no descriptor {fd} was inherited");
    // SAFETY: it is open, as was just seen, and its number came from the process that left it to this one alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    close_on_exec(&fd)?;
    Ok(fd)
}
