//! The router of a VPC: one process (`wisp router`) in a user and a network namespace of its own, which holds a bridge with
//! a tap for each instance. Nothing of it is in the host's own namespace, and it needs no privilege.
//!
//! The bridge's ports are isolated from each other: everything is routed, and passes the rules that nftables holds. The way
//! out is `pasta`, where it is installed. The router is started by who connects the first instance, and ends when the last
//! instance's monitor has: with it go the bridge, the rules and the way out.
//!
//! One that is killed takes only the way out with it: the kernel goes on to pass what the rules let. The next router goes
//! into the same namespaces, which the keepers of the instances' monitors hold for it.

mod held;
mod namespace;
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

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::environment;
use super::home::{lock_file, write_private};
use super::monitor_process::keep_open;
use super::probe::{self, NamespaceSetting};
use crate::unix_socket;
use crate::vmm::link::{Cidr, Filter, MacAddress};
pub use held::namespace_of;
pub use process::run;

/// The programs that it cannot do without, and the packages that have them.
pub const PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("nft", "nftables")];
/// The way out.
pub const WAY_OUT: &str = "pasta";

const CONFIG: &str = "router.json";
const SOCKET: &str = "router.sock";
const LOCK: &str = "lock";
const LOG: &str = "router.log";
/// How long a router may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer, and the longest request, in bytes.
const ANSWER_LIMIT: u64 = 64 << 10;

/// A VPC, as its router is to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterConfig {
    /// The VPC's addresses.
    pub range: Cidr,
    /// The router's own.
    pub router: Ipv4Addr,
    /// Where instances ask for names: what they ask there goes to the host's own name server.
    pub dns: Ipv4Addr,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// The instances.
    pub interfaces: Vec<Interface>,
}

/// An instance's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its address.
    pub address: Ipv4Addr,
    /// The instance's folder.
    pub folder: PathBuf,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// What may be begun by it, and with it.
    pub filter: Filter,
}

/// What a router is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    /// To go by its configuration as it is now.
    Apply,
    /// That, and a tap for the interface with this address.
    Attach(Ipv4Addr),
    /// Whether there is a way out; answered when that is known.
    WayOut,
}

/// What it answers; a tap comes with the answer to [`Request::Attach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// It is done.
    Done,
    /// There is a way out, or there is none.
    WayOut(bool),
    /// It cannot be done.
    Failed(String),
}

/// Where a router is.
#[derive(Debug)]
pub enum Place {
    /// In namespaces of its own, which it makes for the interface with this address.
    New(Ipv4Addr),
    /// In the network namespace of one that was killed.
    Held(OwnedFd),
}

/// Why there is no router, or why it does not do what it is to.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A program is not installed.
    #[error("{0} is not installed; `sudo apt install {1}` does it")]
    Missing(&'static str, &'static str),
    /// Taps cannot be made.
    #[error("/dev/net/tun cannot be opened ({0}); `sudo chmod 0666 /dev/net/tun`, its usual mode, allows it")]
    Tun(#[source] io::Error),
    /// The kernel gives this user no namespaces.
    #[error("{} forbids the namespaces that a network's router is in; `{}` allows them", .0.name, .0.mend())]
    Forbidden(NamespaceSetting),
    /// It could not be started, or does not answer.
    #[error("the network's router cannot be used: {0}")]
    Io(#[from] io::Error),
    /// Its process ended before it answered.
    #[error("the network's router ended before it answered; {} may tell why", .0.display())]
    Ended(PathBuf),
    /// It says why not.
    #[error("the network's router says: {0}")]
    Refused(String),
}

/// The folder of a VPC's router, locked: one command at a time tells it what to go by.
#[derive(Debug)]
pub struct Router {
    folder: PathBuf,
    _lock: File,
}

/// What came of connecting an instance.
#[derive(Debug)]
pub struct Attached {
    /// Its tap: the device's end.
    pub tap: OwnedFd,
    /// What became of others, if their router had been killed.
    pub revival: Option<Revival>,
}

/// What became of a VPC whose router was killed. Instances are named as their folders are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revival {
    /// Where another router has gone on in its place, whether there is a way out. None where no instance has kept its place.
    pub came_back: Option<bool>,
    /// Instances that reach nobody until they are stopped and started.
    pub cut_off: Vec<String>,
}

/// A VPC whose router was killed while instances ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Killed {
    /// The VPC, as its router's folder is named.
    pub vpc: String,
    /// Whether the next router can take its place.
    pub can_come_back: bool,
    /// Instances that it cannot be for.
    pub cut_off: Vec<String>,
}

/// The VPCs in `networks`, which has a folder for each, whose routers were killed while instances ran. Nothing is changed.
pub fn killed(networks: &Path) -> Vec<Killed> {
    let judge = |folder: &Path| {
        let vpc = folder.file_name()?.to_str()?.to_string();
        let config = is_killed(folder).then(|| process::read_config(folder).ok()).flatten()?;
        let found = held::find(&config).ok()?;
        let (can_come_back, cut_off) = (found.namespace.is_some(), names(&found.cut_off));
        (can_come_back || !cut_off.is_empty()).then_some(Killed { vpc, can_come_back, cut_off })
    };
    let entries = std::fs::read_dir(networks).into_iter().flatten().flatten();
    let mut all: Vec<Killed> = entries.filter_map(|entry| judge(&entry.path())).collect();
    all.sort_by(|one, other| one.vpc.cmp(&other.vpc));
    all
}

/// Whether the router of the folder was killed: one that ends in order removes its socket.
pub fn is_killed(folder: &Path) -> bool {
    held::is_deserted(&folder.join(SOCKET))
}

fn names(interfaces: &[&Interface]) -> Vec<String> {
    let name = |interface: &&Interface| interface.folder.file_name().map(|name| name.to_string_lossy().into_owned());
    interfaces.iter().filter_map(name).collect()
}

/// Whether this host can have routers.
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
    /// Waits for the lock of the router in `folder`, which exists.
    pub fn lock(folder: &Path) -> Result<Router, RouterError> {
        Ok(Router { folder: folder.to_path_buf(), _lock: lock_file(&folder.join(LOCK))? })
    }

    /// Has it go by `config`. One that has ended needs to know nothing; one that was killed comes back, if an instance holds
    /// its place.
    pub fn apply(&self, config: &RouterConfig) -> Result<Option<Revival>, RouterError> {
        self.write(config)?;
        let (stream, killed) = match connect(&self.folder) {
            Err(error) if is_absent(&error) => match self.find(config, &error)? {
                (None, cut_off) => return Ok(Some(Revival { came_back: None, cut_off })),
                (Some(namespace), cut_off) => (self.start(Place::Held(namespace))?, Some(cut_off)),
            },
            other => (other?, None),
        };
        ask(&self.folder, &stream, Request::Apply)?;
        killed.map(|cut_off| Ok(Revival { came_back: Some(has_way_out(&self.folder)?), cut_off })).transpose()
    }

    /// Has it go by `config`, and connects the interface with `address`; starts it if it does not run.
    pub fn attach(&self, config: &RouterConfig, address: Ipv4Addr) -> Result<Attached, RouterError> {
        self.write(config)?;
        let (stream, killed) = match connect(&self.folder) {
            Err(error) if is_absent(&error) => {
                let (namespace, cut_off) = self.find(config, &error)?;
                let came_back = namespace.is_some();
                (self.start(namespace.map_or(Place::New(address), Place::Held))?, Some((came_back, cut_off)))
            }
            other => (other?, None),
        };
        let (_, Some(tap)) = ask(&self.folder, &stream, Request::Attach(address))? else {
            return Err(RouterError::Refused("there is no tap in its answer".into()));
        };
        let revived = |(came_back, cut_off): (bool, _)| {
            let came_back = came_back.then(|| has_way_out(&self.folder)).transpose()?;
            Ok::<_, RouterError>(Revival { came_back, cut_off })
        };
        Ok(Attached { tap, revival: killed.map(revived).transpose()? })
    }

    /// The network namespace of one that does not run, as `absent` says, and the instances that run outside it. One that
    /// ended had no instances.
    fn find(&self, config: &RouterConfig, absent: &io::Error) -> io::Result<(Option<OwnedFd>, Vec<String>)> {
        if absent.kind() == io::ErrorKind::NotFound {
            return Ok((None, Vec::new()));
        }
        let found = held::find(config)?;
        Ok((found.namespace, names(&found.cut_off)))
    }

    fn write(&self, config: &RouterConfig) -> io::Result<()> {
        write_private(&self.folder.join(CONFIG), &serde_json::to_vec_pretty(config)?)
    }

    /// Starts it. It is listened for before it runs, so that it can be connected to at once.
    fn start(&self, place: Place) -> Result<UnixStream, RouterError> {
        check()?;
        Ok(self.spawn(place).and_then(|()| connect(&self.folder))?)
    }

    fn spawn(&self, place: Place) -> io::Result<()> {
        let socket = self.folder.join(SOCKET);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = OwnedFd::from(unix_socket::bind(&socket)?);
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(self.folder.join(LOG))?;
        let mut command = Command::new("/proc/self/exe");
        environment::restrict(&mut command);
        command.arg0("wisp").arg("router").arg(&self.folder);
        command.args(["--listener-fd", &listener.as_raw_fd().to_string()]);
        let namespace = match place {
            Place::New(first) => {
                command.args(["--first", &first.to_string()]);
                None
            }
            Place::Held(namespace) => {
                command.args(["--namespace-fd", &namespace.as_raw_fd().to_string()]);
                Some(namespace)
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe; the descriptors are
        // open until the child has started.
        unsafe {
            command.pre_exec(move || {
                keep_open(&listener)?;
                namespace.as_ref().map(keep_open).transpose()?;
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        // It outlives a command that only starts an instance; one that stays has to take note of its end.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// Whether there is a way out of the VPC whose router in `folder` runs; waits until that is known, some hundredths of a second
/// after it was started.
pub fn has_way_out(folder: &Path) -> Result<bool, RouterError> {
    match ask(folder, &connect(folder)?, Request::WayOut)? {
        (Answer::WayOut(is_there), _) => Ok(is_there),
        _ => Err(RouterError::Refused("it does not answer whether there is a way out".into())),
    }
}

fn connect(folder: &Path) -> io::Result<UnixStream> {
    let stream = unix_socket::connect(&folder.join(SOCKET))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// Whether nobody listens.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Asks the router in `folder` for something; returns the answer, and the descriptor that came with it.
fn ask(folder: &Path, stream: &UnixStream, request: Request) -> Result<(Answer, Option<OwnedFd>), RouterError> {
    let ended = || RouterError::Ended(folder.join(LOG));
    let (text, fd) = exchange(stream, request).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ended(),
        _ => error.into(),
    })?;
    if text.is_empty() {
        return Err(ended());
    }
    if text.len() as u64 > ANSWER_LIMIT {
        return Err(RouterError::Refused(format!("more than the {ANSWER_LIMIT} bytes of an answer")));
    }
    match serde_json::from_slice(&text).map_err(io::Error::from)? {
        Answer::Failed(why) => Err(RouterError::Refused(why)),
        answer => Ok((answer, fd)),
    }
}

/// Sends a request and reads to the end of the answer, which is empty if the router has ended.
fn exchange(stream: &UnixStream, request: Request) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    (&*stream).write_all(&line)?;
    let mut text = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    text.truncate(received.bytes);
    stream.take(ANSWER_LIMIT).read_to_end(&mut text)?;
    Ok((text, fd))
}
