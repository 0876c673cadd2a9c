//! The two processes of `wisp vmm`: a supervisor, and its child, the VMM in its sandbox ([`sandbox`](crate::sandbox)).
//!
//! A machine without an owner is an instance. The VMM records the end of an instance in its directory for the next
//! command; if the VMM was killed for lack of memory or by its seccomp filter, the supervisor does. After a guest
//! reboot, the supervisor of an instance keeps the lock and starts a new VMM.

mod child;
mod log_pipe;
mod signals;
pub mod split;
mod supervisor;

use std::error::Error as StdError;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use rustix::fs::Mode;

use crate::sandbox::limits;
use child::Vmm;
use log_pipe::LogPipe;
use machine::config::MachineConfig;
use machine::descriptors::inherit;
use machine::end_record::EndRecord;
use machine::files::{self, CONFIG, LOG, VSOCK_SOCKET, make_vmm_directory, vmm_directory};
use machine::launch::Restore;
use netstack::broker::{self, Broker, BrokerClient};
use signals::Signals;
use split::{Side, split};
use supervisor::Supervisor;

/// The process's arguments. The descriptors are inherited from the command that starts the machine.
#[derive(Debug)]
pub struct Arguments {
    /// Instance directory.
    pub dir: PathBuf,
    /// The instance's lock.
    pub lock: RawFd,
    /// The owner's connection; the machine ends when it closes.
    pub owner: Option<RawFd>,
    /// A connection to notify when the machine has started.
    pub watcher: Option<RawFd>,
    /// The connection to attach to the serial console.
    pub console: Option<RawFd>,
    /// The network backend.
    pub network: Option<RawFd>,
    /// Start time of the user's command, in nanoseconds of the monotonic clock.
    pub began_ns: Option<u64>,
    /// The snapshot to restore. After a reboot, the guest cold-boots.
    pub restore: Option<Restore>,
    /// Boot without the instance's identity, which the guest gets after it was saved as a template. After a reboot, the
    /// guest boots with it.
    pub template: bool,
    /// Number of consecutive times that the guest rebooted shortly after it started.
    pub short_runs: u32,
}

type ExplainCreateVm = fn(errno: i32) -> String;

/// Functions of the caller that inspect the host.
#[derive(Debug, Clone, Copy)]
pub struct HostFunctions {
    /// Opens the network namespace of a network backend, if the backend is a tap.
    pub namespace_of: fn(&OwnedFd) -> Option<OwnedFd>,
    /// Explains KVM's error when it creates a virtual machine.
    pub explain_create_vm: ExplainCreateVm,
}

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error(transparent)]
    Descriptor(io::Error),
    #[error("{} is not a valid machine configuration: {source}", path.display())]
    Config { path: PathBuf, source: io::Error },
    #[error("{what}: {source}")]
    Host { what: &'static str, source: io::Error },
    #[error(transparent)]
    Machine(#[from] crate::Error),
}

impl ProcessError {
    fn host(what: &'static str) -> impl FnOnce(io::Error) -> ProcessError {
        move |source| ProcessError::Host { what, source }
    }

    /// Formats the error and its causes, with the host's advice if KVM refused to create a virtual machine.
    fn explain(&self, explain_create_vm: ExplainCreateVm) -> String {
        if let ProcessError::Machine(crate::Error::CreateVm(source)) = self {
            return explain_create_vm(source.errno());
        }
        let causes = std::iter::successors(self.source(), |error| StdError::source(*error)).map(ToString::to_string);
        causes
            .fold(self.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
    }
}

/// Starts the VMM and supervises it until it exits. Returns in both processes, in each with its own exit code.
pub fn run(arguments: &Arguments, host: HostFunctions) -> Result<ExitCode, ProcessError> {
    let Arguments { lock, owner, watcher, console, network, .. } = arguments;
    let inherited = [Some(*lock), *owner, *watcher, *console, *network];
    limits::close_others(&inherited.into_iter().flatten().collect::<Vec<_>>())
        .map_err(ProcessError::host("cannot close the file descriptors that the VMM does not need"))?;
    // Files and sockets that the two processes create are private to this user.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // The first descriptor, so that it is dropped last: a free lock means that no process is left.
    let lock = take(*lock)?;
    let network = network.map(take).transpose()?;
    let connections = Connections::take(arguments)?;
    let dir = &arguments.dir;
    make_vmm_directory(dir).map_err(ProcessError::host("cannot create the VMM's directory"))?;
    let config = files::read_config(dir).map_err(|source| ProcessError::Config { path: dir.join(CONFIG), source });
    let (broker, client) =
        broker_of(dir, config.as_ref().ok()).map_err(ProcessError::host("cannot open the VMM's sockets"))?;
    let signals = Signals::block().map_err(ProcessError::host("cannot block the termination signals"))?;
    let (log, vmm_stderr) = LogPipe::new(&dir.join(LOG)).map_err(ProcessError::host("cannot open the VMM's log"))?;
    let (supervisor, began) = (std::process::id(), Instant::now());
    match split().map_err(ProcessError::host("cannot start the VMM process"))? {
        Side::Child(sandbox) => {
            drop(broker);
            signals.unblock();
            // The VMM can write to the log only through the pipe.
            drop(log);
            rustix::stdio::dup2_stderr(&vmm_stderr)
                .map_err(|errno| ProcessError::host("cannot redirect standard error to the VMM's log")(errno.into()))?;
            drop(vmm_stderr);
            let explain = host.explain_create_vm;
            Vmm { arguments, sandbox, supervisor, broker: client, network, explain }.run(connections, config)
        }
        Side::Supervisor { child, alive: _alive } => {
            // These connections must close when the VMM exits, so only the VMM may keep them open.
            drop((connections, client, vmm_stderr));
            // If the VPC's router is killed, this descriptor keeps the network namespace for the next router. The VMM
            // has no descriptor of the namespace.
            let _namespace = network.as_ref().and_then(host.namespace_of);
            Supervisor { arguments, signals: &signals, broker, log, lock: &lock, network, began }.supervise(child)
        }
    }
}

fn take(fd: RawFd) -> Result<OwnedFd, ProcessError> {
    inherit(fd).map_err(ProcessError::Descriptor)
}

/// Creates the broker for the machine's sockets, and the client for its VMM.
fn broker_of(dir: &Path, config: Option<&MachineConfig>) -> io::Result<(Broker, BrokerClient)> {
    let link = config.and_then(|config| config.net.as_ref()?.link.clone());
    broker::pair(link, Some(vmm_directory(dir).join(VSOCK_SOCKET)))
}

/// The connections that a VMM inherits.
#[derive(Debug)]
struct Connections {
    owner: Option<UnixStream>,
    watcher: Option<UnixStream>,
    console: Option<UnixStream>,
}

impl Connections {
    fn take(arguments: &Arguments) -> Result<Connections, ProcessError> {
        let stream = |fd: Option<RawFd>| fd.map(|fd| take(fd).map(UnixStream::from)).transpose();
        let (owner, watcher) = (stream(arguments.owner)?, stream(arguments.watcher)?);
        Ok(Connections { owner, watcher, console: stream(arguments.console)? })
    }
}

/// Records the machine's end in the VMM's directory `own`. If that fails, only the log has the reason.
fn keep_record(record: &EndRecord, own: &Path) {
    if let Err(error) = record.write(own) {
        log::error!("cannot record the machine's end: {error}");
    }
}
