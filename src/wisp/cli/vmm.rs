//! `wisp vmm`: runs the supervisor and VMM processes. Other commands start it.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Context;
use rustix::fs::Mode;

use machine::MachineConfig;
use machine::config::MAX_DISKS;
use machine::control::{self, Message};
use machine::end::End;
use machine::end_record::EndRecord;
use machine::files::{CONSOLE_SOCKET, VSOCK_SOCKET};
use machine::launch::{Launcher, Restore};
use machine::passed_files::FdTable;
use machine::sandbox_record::SECCOMP_EXIT_CODE;
use machine::untrusted;
use netstack::broker::{self, Broker, BrokerClient};
use node::environment;
use node::out_of_memory::OomKillCount;
use node::probe;
use node::router;
use node::supervisor::{self, LogPipe, Signals};
use node::vmm_process::{self, CONFIG, LOG, close_on_exec, keep_open, make_vmm_directory, violation, vmm_directory};
use vmm::Machine;
use vmm::kvm::VirtualMachine;
use vmm::machine::VmmInputs;
use vmm::sandbox::files::Grants;
use vmm::sandbox::namespaces::{self, Side};
use vmm::sandbox::{self, limits};
use vmm::snapshot::origin;
use vmm::virtio::block::Ring;

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

    /// Number of consecutive times that the guest rebooted shortly after it started.
    #[arg(long, default_value_t = 0)]
    short_runs: u32,

    /// Delete the snapshot's state before the vCPUs run, so that it is restored only once.
    #[arg(long, requires = "restore")]
    once: bool,
}

/// Starts the sandboxed VMM (`vmm/sandbox`) as a child, and supervises it until it exits.
///
/// A machine without an owner is an instance. The VMM records the end of an instance in its directory for the next
/// command; if the VMM was killed for lack of memory or by its seccomp filter, the supervisor does. After a guest
/// reboot, the supervisor of an instance keeps the lock and starts a new VMM.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let inherited = [Some(args.lock_fd), args.owner_fd, args.watcher_fd, args.console_fd, args.network_fd];
    limits::close_others(&inherited.into_iter().flatten().collect::<Vec<_>>())
        .context("cannot close the file descriptors that the VMM does not need")?;
    // Files and sockets that the two processes create are private to this user.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // The lock is held until both processes have exited.
    let lock = inherit(args.lock_fd)?;
    let network = args.network_fd.map(inherit).transpose()?;
    let connections = Connections::take(&args)?;
    make_vmm_directory(&args.dir).context("cannot create the VMM's directory")?;
    let config = read_config(&args.dir);
    let (mut broker, client) = broker_of(&args.dir, config.as_ref().ok()).context("cannot open the VMM's sockets")?;
    let signals = Signals::block().context("cannot block the termination signals")?;
    let (mut log, vmm_stderr) = LogPipe::new(&args.dir.join(LOG)).context("cannot open the VMM's log")?;
    let supervisor = std::process::id();
    let began = Instant::now();
    match namespaces::split().context("cannot start the VMM process")? {
        Side::Child(sandbox) => {
            drop(broker);
            signals.unblock();
            // The VMM can write to the log only through the pipe.
            drop(log);
            rustix::stdio::dup2_stderr(&vmm_stderr).context("cannot redirect standard error to the VMM's log")?;
            drop(vmm_stderr);
            let network = network
                .as_ref()
                .map(OwnedFd::try_clone)
                .transpose()
                .context("cannot duplicate the network descriptor")?;
            run_vmm(&args, connections, network, config, Sandboxed { sandbox, supervisor, broker: client })
        }
        Side::Supervisor { child, alive: _alive } => {
            // These connections must close when the VMM exits, so only the VMM may keep them open.
            drop((connections, client, vmm_stderr));
            // If the VPC's router is killed, this descriptor keeps the network namespace for the next router. The VMM
            // has no descriptor of the namespace.
            let _namespace = network.as_ref().and_then(router::namespace_of);
            let killed_before = OomKillCount::now();
            let status = signals.wait(child, &mut broker, &mut log).context("waiting for the VMM failed")?;
            if status.terminating_signal() == Some(libc::SIGKILL)
                && args.owner_fd.is_none()
                && let Some(suspicion) = killed_before.suspicion()
                && let Ok(None) = EndRecord::read(&vmm_directory(&args.dir))
            {
                keep(&EndRecord::Failed { why: format!("its VMM was killed; {suspicion}") }, &args.dir);
            }
            let short_runs = supervisor::count_short_runs(args.short_runs, began.elapsed());
            let code = handle_end(&args, status.exit_status(), &signals, short_runs);
            signals.unblock();
            match code {
                Some(code) => Ok(code),
                None => Err(start_again(&args.dir, &lock, network.as_ref(), short_runs)),
            }
        }
    }
}

/// Creates the broker for the machine's sockets, and the client for its VMM.
fn broker_of(dir: &Path, config: Option<&MachineConfig>) -> std::io::Result<(Broker, BrokerClient)> {
    let link = config.and_then(|config| config.net.as_ref()?.link.clone());
    broker::pair(link, Some(vmm_directory(dir).join(VSOCK_SOCKET)))
}

/// The exit code of a VMM whose guest rebooted.
const AGAIN: u8 = 75;
/// The exit code of a VMM whose owner exited without removing the directory.
const LEFT: u8 = 76;

/// The action of the supervisor after its VMM has exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    StartAgain,
    RemoveDirectory,
    RecordViolation,
    Nothing,
}

impl Aftermath {
    /// Returns the action for an exit code. A compromised VMM can choose its code, so a code that is invalid for the
    /// kind of machine (with or without an owner) has no effect.
    fn of(code: Option<i32>, has_owner: bool) -> Aftermath {
        const AGAIN_CODE: i32 = AGAIN as i32;
        const LEFT_CODE: i32 = LEFT as i32;
        match (code, has_owner) {
            (Some(AGAIN_CODE), false) => Aftermath::StartAgain,
            (Some(LEFT_CODE), true) => Aftermath::RemoveDirectory,
            (Some(SECCOMP_EXIT_CODE), false) => Aftermath::RecordViolation,
            _ => Aftermath::Nothing,
        }
    }
}

/// Handles the end of the VMM. `code` is its exit code, if it exited. Returns the supervisor's exit code, or `None`
/// to restart the machine.
fn handle_end(args: &Args, code: Option<i32>, signals: &Signals, short_runs: u32) -> Option<ExitCode> {
    if let Err(error) = origin::forget(&vmm_directory(&args.dir)) {
        log::warn!("cannot remove the link to the restored snapshot's memory: {error}");
    }
    match Aftermath::of(code, args.owner_fd.is_some()) {
        Aftermath::StartAgain => {
            let delay = supervisor::restart_delay(short_runs);
            if !delay.is_zero() {
                log::warn!("the guest rebooted {short_runs} times shortly after starting; restarting it in {delay:?}");
            }
            if !signals.end_within(delay) {
                return None;
            }
            let why = "it was terminated by a signal during a guest reboot".into();
            keep(&EndRecord::Failed { why }, &args.dir);
        }
        // The owner was killed; otherwise it would have removed the directory itself.
        Aftermath::RemoveDirectory => drop(fs::remove_dir_all(&args.dir)),
        Aftermath::RecordViolation => {
            let why = violation(&args.dir)
                .unwrap_or_else(|| "its VMM made a system call that its seccomp filter denies".into());
            keep(&EndRecord::Failed { why }, &args.dir);
        }
        Aftermath::Nothing => {}
    }
    // A VMM that was killed by a signal has no exit code.
    Some(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
}

/// The connections that a VMM inherits.
#[derive(Debug)]
struct Connections {
    owner: Option<UnixStream>,
    watcher: Option<UnixStream>,
    console: Option<UnixStream>,
}

impl Connections {
    fn take(args: &Args) -> anyhow::Result<Connections> {
        let stream = |fd: Option<RawFd>| anyhow::Ok(fd.map(inherit).transpose()?.map(UnixStream::from));
        let (owner, watcher) = (stream(args.owner_fd)?, stream(args.watcher_fd)?);
        Ok(Connections { owner, watcher, console: stream(args.console_fd)? })
    }
}

/// The VMM's sandbox, supervisor (process ID) and broker.
struct Sandboxed {
    sandbox: namespaces::SandboxedChild,
    supervisor: u32,
    broker: BrokerClient,
}

/// Enters the sandbox and runs the machine, in the VMM process. If the machine cannot be built, sends the error to the
/// command that started it.
fn run_vmm(
    args: &Args,
    Connections { owner, watcher, console }: Connections,
    network: Option<OwnedFd>,
    config: anyhow::Result<MachineConfig>,
    sandboxed: Sandboxed,
) -> anyhow::Result<ExitCode> {
    let complaint = owner.as_ref().or(watcher.as_ref()).map(UnixStream::try_clone).transpose();
    let complaint = complaint.context("cannot duplicate the connection to the command that started the machine")?;
    let owned = owner.is_some();
    let launcher = match (owner, watcher) {
        (Some(owner), _) => Launcher::Owner(owner),
        (None, Some(watcher)) => Launcher::Watcher(watcher),
        (None, None) => Launcher::Detached,
    };
    let result = config.and_then(|config| {
        let inputs = VmmInputs {
            dir: vmm_directory(&args.dir),
            kvm: VirtualMachine::begin()?,
            pid: sandboxed.supervisor,
            launcher,
            console,
            network,
            broker: sandboxed.broker,
            process_start_ns: args.began_ns,
            restore: args.restore.clone().map(|dir| Restore { dir, once: args.once }),
            // An io_uring cannot be created inside the sandbox.
            rings: (0..config.all_disk_slots().min(MAX_DISKS)).map_while(|_| Ring::new()).collect(),
            files: FdTable::of(&config.disks),
        };
        build_and_run(config, inputs, owned, &sandboxed.sandbox)
    });
    if let Err(error) = &result {
        let why = explain(error);
        if !owned {
            keep(&EndRecord::Failed { why: why.clone() }, &args.dir);
        }
        if let Some(stream) = &complaint {
            control::send_once(stream, &Message::Failed { why });
        }
    }
    if owned && complaint.as_ref().is_some_and(has_left) {
        return Ok(ExitCode::from(LEFT));
    }
    Ok(match result? {
        End::Reboot if !owned => ExitCode::from(AGAIN),
        end if end.is_orderly() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Restarts the machine after a guest reboot: re-executes wisp in the supervisor's process. Returns only on failure.
fn start_again(dir: &Path, lock: &OwnedFd, network: Option<&OwnedFd>, short_runs: u32) -> anyhow::Error {
    let mut command = Command::new("/proc/self/exe");
    environment::restrict(&mut command);
    command.arg0("wisp").arg("vmm").arg(dir).args(["--short-runs", &short_runs.to_string()]);
    for (option, fd) in [("--lock-fd", Some(lock)), ("--network-fd", network)] {
        match fd.map(keep_open).transpose() {
            Ok(number) => {
                command.args(number.map(|number| [option.to_string(), number.to_string()]).into_iter().flatten())
            }
            Err(error) => {
                return anyhow::Error::new(error)
                    .context("cannot keep the lock and the network open across the reboot");
            }
        };
    }
    anyhow::Error::new(command.exec()).context("cannot restart the VMM after the guest's reboot")
}

/// Records the machine's end. If that fails, only the log has the reason.
fn keep(record: &EndRecord, dir: &Path) {
    keep_in(&vmm_directory(dir), record);
}

fn keep_in(own: &Path, record: &EndRecord) {
    if let Err(error) = record.write(own) {
        log::error!("cannot record the machine's end: {error}");
    }
}

/// Formats the error, with the advice of `wisp doctor` if KVM refused to create a virtual machine.
fn explain(error: &anyhow::Error) -> String {
    match error.downcast_ref::<vmm::Error>() {
        Some(vmm::Error::CreateVm(source)) => probe::create_vm_error(source.errno()).to_string(),
        _ => super::output::explain(error),
    }
}

fn read_config(dir: &Path) -> anyhow::Result<MachineConfig> {
    let path = dir.join(CONFIG);
    vmm_process::read_config(dir).with_context(|| format!("{} is not a valid machine configuration", path.display()))
}

fn build_and_run(
    config: MachineConfig,
    inputs: VmmInputs,
    owned: bool,
    child: &namespaces::SandboxedChild,
) -> anyhow::Result<End> {
    let own = inputs.dir.clone();
    clear_leftovers(&own).context("cannot remove the files of the previous run")?;
    if let Some(Restore { dir: saved, once: false }) = &inputs.restore {
        origin::keep(saved, &own);
    }
    let grants = Grants::of(&own, &config, inputs.restore.as_ref());
    sandbox::enter(child, &grants, config.threads())?;
    let conclude = |end: &End, status: &control::VmmStatus| {
        if !owned && *end != End::Reboot {
            keep_in(&own, &EndRecord::ended(end, status));
        }
    };
    Ok(Machine::new(config, inputs)?.run(conclude)?)
}

/// Removes the sockets, the snapshot's origin and the end record of an earlier machine from the VMM's directory `own`.
/// The lock is held, so they are unused. This process has the user's privileges, so it removes only these names and
/// does not follow a link that an earlier VMM created.
fn clear_leftovers(own: &Path) -> std::io::Result<()> {
    EndRecord::clear(own)?;
    origin::forget(own)?;
    let control = own.join(control::SOCKET);
    let sockets = [control.with_extension("new"), control, own.join(CONSOLE_SOCKET), own.join(VSOCK_SOCKET)];
    sockets.iter().try_for_each(|socket| untrusted::remove(socket))
}

/// Returns true if the other end of the owner's connection is closed.
fn has_left(owner: &UnixStream) -> bool {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0];
    matches!(recv(owner, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((0, _)))
}

/// Takes ownership of an inherited descriptor.
pub(super) fn inherit(fd: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD only reads the descriptor's flags.
    anyhow::ensure!(fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1, "descriptor {fd} was not inherited");
    // SAFETY: it is open, as was just checked, and the parent process passed it to this process alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    close_on_exec(&fd)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_for_other_kind_of_machine_has_no_effect() {
        let (again, left) = (Some(i32::from(AGAIN)), Some(i32::from(LEFT)));
        assert_eq!(Aftermath::of(again, false), Aftermath::StartAgain);
        assert_eq!(Aftermath::of(again, true), Aftermath::Nothing);
        assert_eq!(Aftermath::of(left, true), Aftermath::RemoveDirectory);
        assert_eq!(Aftermath::of(left, false), Aftermath::Nothing);
        assert_eq!(Aftermath::of(Some(SECCOMP_EXIT_CODE), false), Aftermath::RecordViolation);
        assert_eq!(Aftermath::of(Some(SECCOMP_EXIT_CODE), true), Aftermath::Nothing);
        for code in [None, Some(0), Some(1), Some(-1), Some(i32::from(AGAIN) + 256)] {
            assert_eq!(Aftermath::of(code, true), Aftermath::Nothing);
            assert_eq!(Aftermath::of(code, false), Aftermath::Nothing);
        }
    }

    #[test]
    fn clear_leftovers_with_planted_links_keeps_their_targets() {
        let dir = tempfile::tempdir().unwrap();
        let (own, outside) = (dir.path().join("vmm"), dir.path().join("outside"));
        make_vmm_directory(dir.path()).unwrap();
        make_vmm_directory(dir.path()).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "the user's").unwrap();
        for name in ["control.sock", "end.json", "origin"] {
            std::os::unix::fs::symlink(outside.join("victim"), own.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, own.join("vsock.sock")).unwrap();
        fs::create_dir(own.join("console.sock")).unwrap();
        std::os::unix::fs::symlink(&outside, own.join("console.sock/link")).unwrap();
        fs::write(own.join("console.log"), "stays").unwrap();

        clear_leftovers(&own).unwrap();
        let left: Vec<_> = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["console.log"]);
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "the user's");
    }
}
