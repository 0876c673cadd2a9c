//! The router of a VPC: one process (`wisp router`) in a user and a network namespace of its own, which holds a bridge with
//! a tap for each instance. Nothing of it is in the host's own namespace, and it needs no privilege.
//!
//! The bridge's ports are isolated from each other: everything is routed, and passes the rules that nftables holds. The way
//! out is `pasta`, where it is installed. The router is started by who connects the first instance, and ends when the last
//! instance's monitor has: with it go the bridge, the rules and the way out.

mod namespace;
mod process;
mod rules;

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::home::{lock_file, write_private};
use super::monitor_process::keep_open;
use super::probe::{self, NamespaceSetting};
use crate::vmm::link::{Cidr, Filter, MacAddress};
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
}

/// What it answers; a tap comes with the answer to [`Request::Attach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// It is done.
    Done {
        /// Whether there is a way out.
        has_way_out: bool,
    },
    /// It cannot be done.
    Failed(String),
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
    /// Whether there is a way out of the VPC.
    pub has_way_out: bool,
    /// Whether the router was started for it. Instances that were connected before that are connected to one that is no more.
    pub is_first: bool,
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

    /// Has it go by `config`; one that does not run needs to know nothing. Returns whether it runs.
    pub fn apply(&self, config: &RouterConfig) -> Result<bool, RouterError> {
        self.write(config)?;
        match self.connect() {
            Ok(stream) => ask(&stream, Request::Apply).map(|_| true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Has it go by `config`, and connects the interface with `address`; starts it if it does not run.
    pub fn attach(&self, config: &RouterConfig, address: Ipv4Addr) -> Result<Attached, RouterError> {
        self.write(config)?;
        let (stream, is_first) = match self.connect() {
            Err(error) if is_absent(&error) => {
                check()?;
                self.start()?;
                (self.connect()?, true)
            }
            other => (other?, false),
        };
        match ask(&stream, Request::Attach(address))? {
            (has_way_out, Some(tap)) => Ok(Attached { tap, has_way_out, is_first }),
            (_, None) => Err(RouterError::Refused("there is no tap in its answer".into())),
        }
    }

    fn write(&self, config: &RouterConfig) -> io::Result<()> {
        write_private(&self.folder.join(CONFIG), &serde_json::to_vec_pretty(config)?)
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.folder.join(SOCKET))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(stream)
    }

    /// Starts it. It is listened for before it runs, so that it can be connected to at once.
    fn start(&self) -> io::Result<()> {
        let socket = self.folder.join(SOCKET);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = OwnedFd::from(UnixListener::bind(&socket)?);
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(self.folder.join(LOG))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("wisp").arg("router").arg(&self.folder);
        command.args(["--listener-fd", &listener.as_raw_fd().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe; `listener` is open
        // until the child has started.
        unsafe {
            command.pre_exec(move || {
                keep_open(&listener)?;
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

/// Whether nobody listens.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Asks for something; returns whether there is a way out, and the descriptor that came with the answer.
fn ask(stream: &UnixStream, request: Request) -> Result<(bool, Option<OwnedFd>), RouterError> {
    let mut line = serde_json::to_vec(&request).map_err(io::Error::from)?;
    line.push(b'\n');
    (&*stream).write_all(&line)?;
    let mut text = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    text.truncate(received.bytes);
    (&*stream).read_to_end(&mut text)?;
    match serde_json::from_slice(&text).map_err(io::Error::from)? {
        Answer::Done { has_way_out } => Ok((has_way_out, fd)),
        Answer::Failed(why) => Err(RouterError::Refused(why)),
    }
}
