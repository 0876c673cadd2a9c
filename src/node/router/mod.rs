//! Router of a VPC: a process (`wisp router`) in its own user and network namespaces, with a bridge and a tap for each
//! instance. It leaves the host's namespaces unchanged and needs no privileges.
//!
//! The bridge's ports are isolated, so even traffic between instances is routed and passes the nftables rules. The
//! uplink is `pasta`, if installed. Attaching the first instance starts the router. It exits after the last instance's
//! VMM, and the bridge, the rules and the uplink disappear.
//!
//! If a router is killed, only the uplink is lost: the kernel continues to forward traffic that the rules allow. A new
//! router enters the same namespaces, which the supervisors of the VMMs hold open.

mod links;
mod namespace;
mod namespace_holder;
mod process;
mod rules;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ipnet::Ipv4Net;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::home::{lock_file, write_private};
use super::probe::{self, NamespaceSetting};
use machine::descriptors::keep_open;
use machine::environment;
use machine::network::{Filter, MacAddress};
use machine::unix_socket;
pub use namespace::namespace_of;
pub use process::run;

/// Required programs and their Debian packages.
pub const PROGRAMS: [(&str, &str); 1] = [("nft", "nftables")];
/// Program that provides the uplink.
pub const UPLINK_PROGRAM: &str = "pasta";

const CONFIG: &str = "router.json";
const SOCKET: &str = "router.sock";
const LOCK: &str = "lock";
const LOG: &str = "router.log";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of an answer and of a request in bytes.
const ANSWER_LIMIT: u64 = 64 << 10;
/// Maximum number of interfaces that one request attaches. The kernel passes at most 253 descriptors.
const MAX_TAPS: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterConfig {
    pub range: Ipv4Net,
    pub router: Ipv4Addr,
    /// Address of the VPC's name server. The uplink forwards its queries to the host's name server.
    pub dns: Ipv4Addr,
    pub mtu: u16,
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub address: Ipv4Addr,
    pub dir: PathBuf,
    pub mac: MacAddress,
    pub filter: Filter,
    /// Destinations to which the subnet has a route through an internet gateway.
    #[serde(default)]
    pub routes: Vec<Ipv4Net>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RouterRequest {
    Apply,
    /// Apply the configuration, and return a tap for the interface with each of these addresses. Their ports are opened
    /// after the response, when the rules are in force.
    Attach(Vec<Ipv4Addr>),
    /// Report whether the ports of these addresses are open.
    Settle(Vec<Ipv4Addr>),
    /// Report whether there is an uplink, once that is known.
    Uplink,
}

/// Response of the router. The response to [`RouterRequest::Attach`] carries the descriptors of the taps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RouterResponse {
    Done,
    /// True if there is an uplink.
    Uplink(bool),
    Failed(String),
}

#[derive(Debug)]
pub enum NamespaceSource {
    /// New namespaces.
    New,
    /// Network namespace of a killed router.
    Held(OwnedFd),
}

#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("{0} is not installed. To install it, run `sudo apt install {1}`")]
    Missing(&'static str, &'static str),
    #[error("cannot open /dev/net/tun: {0}. To restore its default mode, run `sudo chmod 0666 /dev/net/tun`")]
    Tun(#[source] io::Error),
    #[error("{} disables user namespaces, which a VPC's router requires. To enable them, run `{}`", .0.name, .0.fix())]
    Forbidden(NamespaceSetting),
    #[error("cannot use the VPC's router: {0}")]
    Io(#[from] io::Error),
    /// The router exited before it answered. Holds the path of its log.
    #[error("the VPC's router exited unexpectedly; see {}", .0.display())]
    Ended(PathBuf),
    #[error("the VPC's router failed: {0}")]
    Refused(String),
}

/// Locked directory of a VPC's router. The lock serializes commands that configure the router.
#[derive(Debug)]
pub struct Router {
    dir: PathBuf,
    _lock: File,
}

#[derive(Debug)]
pub struct Attached {
    /// In the order of the addresses.
    pub taps: Vec<OwnedFd>,
    /// State of the other instances. `None` if the router was already running.
    pub recovery: Option<RouterRecovery>,
}

/// State of a VPC whose router was not running. Instances are identified by the names of their directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterRecovery {
    /// True if the router that replaced a killed one has an uplink. `None` if no router was replaced.
    pub uplink: Option<bool>,
    /// Instances without a network until they are stopped and started.
    pub disconnected: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KilledRouter {
    /// Name of the router's directory.
    pub vpc: String,
    /// True if a new router can replace the killed one.
    pub is_recoverable: bool,
    /// Instances that a new router cannot reconnect.
    pub disconnected: Vec<String>,
}

/// Returns the VPCs whose routers were killed while instances were running. `networks` has a directory for each VPC.
pub fn killed(networks: &Path) -> Vec<KilledRouter> {
    let judge = |dir: &Path| {
        let vpc = dir.file_name()?.to_str()?.to_string();
        let config = is_killed(dir).then(|| process::read_config(dir).ok()).flatten()?;
        let found = namespace_holder::find(&config).ok()?;
        let (is_recoverable, disconnected) = (found.namespace.is_some(), names(&found.disconnected));
        (is_recoverable || !disconnected.is_empty()).then_some(KilledRouter { vpc, is_recoverable, disconnected })
    };
    let entries = std::fs::read_dir(networks).into_iter().flatten().flatten();
    let mut all: Vec<KilledRouter> = entries.filter_map(|entry| judge(&entry.path())).collect();
    all.sort_by(|one, other| one.vpc.cmp(&other.vpc));
    all
}

/// Returns true if the router was killed. A router that exits normally removes its socket.
pub fn is_killed(dir: &Path) -> bool {
    namespace_holder::is_deserted(&dir.join(SOCKET))
}

fn names(interfaces: &[&Interface]) -> Vec<String> {
    let name = |interface: &&Interface| interface.dir.file_name().map(|name| name.to_string_lossy().into_owned());
    interfaces.iter().filter_map(name).collect()
}

pub fn check() -> Result<(), RouterError> {
    for (program, package) in PROGRAMS {
        if !probe::is_installed(program) {
            return Err(RouterError::Missing(program, package));
        }
    }
    NamespaceSetting::in_force().map_or(Ok(()), |setting| Err(RouterError::Forbidden(setting)))?;
    namespace::open_tun().map(drop).map_err(RouterError::Tun)
}

impl Router {
    /// Waits for the lock of the router in `dir`, which must exist.
    pub fn lock(dir: &Path) -> Result<Router, RouterError> {
        Ok(Router { dir: dir.to_path_buf(), _lock: lock_file(&dir.join(LOCK))? })
    }

    /// Saves `config`, and applies it if the router is running. Replaces a killed router if an instance holds its
    /// namespaces. Returns the state of the VPC, or `None` if the router was already running.
    pub fn apply(&self, config: &RouterConfig) -> Result<Option<RouterRecovery>, RouterError> {
        self.write(config)?;
        let (stream, killed) = match connect(&self.dir) {
            Err(error) if is_absent(&error) => match self.find(config, &error)? {
                (None, disconnected) => return Ok(Some(RouterRecovery { uplink: None, disconnected })),
                (Some(namespace), disconnected) => (self.start(NamespaceSource::Held(namespace))?, Some(disconnected)),
            },
            other => (other?, None),
        };
        ask(&self.dir, &stream, &RouterRequest::Apply)?;
        killed.map(|disconnected| Ok(RouterRecovery { uplink: Some(has_uplink(&self.dir)?), disconnected })).transpose()
    }

    /// Applies `config` and connects the interfaces with these addresses, at most [`MAX_TAPS`]. Starts the router if
    /// needed. No traffic passes until the rules are in force. [`settle`](Self::settle) waits for that.
    pub fn attach(&self, config: &RouterConfig, addresses: &[Ipv4Addr]) -> Result<Attached, RouterError> {
        self.write(config)?;
        let (stream, killed) = match connect(&self.dir) {
            Err(error) if is_absent(&error) => {
                let (namespace, disconnected) = self.find(config, &error)?;
                let uplink = namespace.is_some();
                (
                    self.start(namespace.map_or(NamespaceSource::New, NamespaceSource::Held))?,
                    Some((uplink, disconnected)),
                )
            }
            other => (other?, None),
        };
        let (_, taps) = ask(&self.dir, &stream, &RouterRequest::Attach(addresses.to_vec()))?;
        if taps.len() != addresses.len() {
            let what = format!("its response carries {} taps instead of {}", taps.len(), addresses.len());
            return Err(RouterError::Refused(what));
        }
        let recovery = |(uplink, disconnected): (bool, _)| {
            let uplink = uplink.then(|| has_uplink(&self.dir)).transpose()?;
            Ok::<_, RouterError>(RouterRecovery { uplink, disconnected })
        };
        Ok(Attached { taps, recovery: killed.map(recovery).transpose()? })
    }

    /// Waits until traffic passes between the router and the interfaces with these addresses.
    pub fn settle(&self, addresses: Vec<Ipv4Addr>) -> Result<(), RouterError> {
        match connect(&self.dir) {
            // The router exited normally after its last instance. It cannot do so now, because it needs the lock.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            connected => ask(&self.dir, &connected?, &RouterRequest::Settle(addresses)).map(drop),
        }
    }

    /// Returns the network namespace of a killed router, and the running instances outside it. `absent` is the error of
    /// connecting to the router. `NotFound` means that it exited normally, so there are no instances.
    fn find(&self, config: &RouterConfig, absent: &io::Error) -> io::Result<(Option<OwnedFd>, Vec<String>)> {
        if absent.kind() == io::ErrorKind::NotFound {
            return Ok((None, Vec::new()));
        }
        let found = namespace_holder::find(config)?;
        Ok((found.namespace, names(&found.disconnected)))
    }

    fn write(&self, config: &RouterConfig) -> io::Result<()> {
        write_private(&self.dir.join(CONFIG), &serde_json::to_vec_pretty(config)?)
    }

    /// Starts the router and connects to it. The socket is already listening, so connecting does not wait.
    fn start(&self, place: NamespaceSource) -> Result<UnixStream, RouterError> {
        check()?;
        Ok(self.spawn(place).and_then(|()| connect(&self.dir))?)
    }

    fn spawn(&self, place: NamespaceSource) -> io::Result<()> {
        let socket = self.dir.join(SOCKET);
        machine::fs::remove_if_exists(&socket)?;
        let listener = OwnedFd::from(unix_socket::bind(&socket)?);
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.join(LOG))?;
        let mut command = Command::new("/proc/self/exe");
        environment::restrict(&mut command);
        command.arg0("wisp").arg("router").arg(&self.dir);
        command.args(["--listener-fd", &listener.as_raw_fd().to_string()]);
        let namespace = match place {
            NamespaceSource::New => None,
            NamespaceSource::Held(namespace) => {
                command.args(["--namespace-fd", &namespace.as_raw_fd().to_string()]);
                Some(namespace)
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe. The descriptors
        // are open until the child has started.
        unsafe {
            command.pre_exec(move || {
                keep_open(&listener)?;
                namespace.as_ref().map(keep_open).transpose()?;
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        // Reap the router if it exits before this command does.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// Returns true if the router has an uplink. Waits until that is known, usually tens of milliseconds after its start.
pub fn has_uplink(dir: &Path) -> Result<bool, RouterError> {
    match ask(dir, &connect(dir)?, &RouterRequest::Uplink)? {
        (RouterResponse::Uplink(is_there), _) => Ok(is_there),
        _ => Err(RouterError::Refused("its response lacks the state of the uplink".into())),
    }
}

fn connect(dir: &Path) -> io::Result<UnixStream> {
    let stream = unix_socket::connect(&dir.join(SOCKET))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// Returns true if the error means that no process is listening.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Sends a request. Returns the answer, and the descriptors attached to it.
fn ask(
    dir: &Path,
    stream: &UnixStream,
    request: &RouterRequest,
) -> Result<(RouterResponse, Vec<OwnedFd>), RouterError> {
    let ended = || RouterError::Ended(dir.join(LOG));
    let (text, fds) = exchange(stream, request).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ended(),
        _ => error.into(),
    })?;
    if text.is_empty() {
        return Err(ended());
    }
    if text.len() as u64 > ANSWER_LIMIT {
        return Err(RouterError::Refused(format!("its response exceeds {ANSWER_LIMIT} bytes")));
    }
    match serde_json::from_slice(&text).map_err(io::Error::from)? {
        RouterResponse::Failed(why) => Err(RouterError::Refused(why)),
        answer => Ok((answer, fds)),
    }
}

/// Sends a request. Returns the unparsed answer, which is empty if the router has exited.
fn exchange(stream: &UnixStream, request: &RouterRequest) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&*stream).write_all(&line)?;
    let mut text = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TAPS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    text.truncate(received.bytes);
    stream.take(ANSWER_LIMIT).read_to_end(&mut text)?;
    Ok((text, fds))
}
