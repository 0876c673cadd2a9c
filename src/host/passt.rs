//! passt: user-mode networking, one process for each guest (its manual: passt(1)).
//!
//! It ends a guest's connections and makes its own, as any program of the user's: so it needs no privilege, and changes
//! nothing of the host's. What is listened on for a guest is the monitor's business, not its.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::host::environment;
use crate::host::monitor_process::keep_open;
use crate::host::probe::{self, NamespaceSetting};
use crate::vmm::link::GATEWAY_MAC;

/// The program, and how it is got where it is missing.
pub const PROGRAM: &str = "passt";
/// What installs it.
pub const INSTALL: &str = "sudo apt install passt";

/// A guest's addresses, as its services have them.
#[derive(Debug, Clone)]
pub struct PasstConfig {
    /// The guest's.
    pub address: Ipv4Addr,
    /// The length of its subnet's prefix.
    pub prefix_length: u8,
    /// Its router's.
    pub router: Ipv4Addr,
    /// Where it asks for names: what it asks there goes to the host's own name server.
    pub dns: Ipv4Addr,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// Where passt says what goes wrong.
    pub log: PathBuf,
}

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error("{PROGRAM} is not installed; `{INSTALL}` does it")]
    Missing,
    /// The kernel gives it none of the namespaces that it locks itself into.
    #[error("{} forbids the namespaces that {PROGRAM} locks itself into; `{}` allows them", .0.name, .0.mend())]
    Forbidden(NamespaceSetting),
    /// It could not be started.
    #[error("{PROGRAM} cannot be started: {0}")]
    Spawn(#[source] io::Error),
}

/// Whether this host can have it.
pub fn check() -> Result<(), PasstError> {
    if !probe::is_installed(PROGRAM) {
        return Err(PasstError::Missing);
    }
    match NamespaceSetting::in_force() {
        Some(setting) if setting.for_all => Err(PasstError::Forbidden(setting)),
        _ => Ok(()),
    }
}

/// One that is about to be started.
#[derive(Debug)]
pub struct Prepared {
    command: Command,
    far: OwnedFd,
}

/// Prepares it, and returns the socket that frames go through. It ends when the other end of that is closed.
pub fn prepare(config: &PasstConfig) -> Result<(OwnedFd, Prepared), PasstError> {
    check()?;
    let (near, far) = UnixStream::pair().map_err(PasstError::Spawn)?;
    let far = OwnedFd::from(far);
    let mut command = Command::new(PROGRAM);
    environment::restrict(&mut command);
    command.args(["--foreground", "--quiet", "--ipv4-only", "--no-map-gw"]);
    command.args(["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--tcp-ports", "none", "--udp-ports", "none"]);
    command.args(["--fd", &far.as_raw_fd().to_string()]);
    command.args(["--address", &config.address.to_string(), "--netmask", &config.prefix_length.to_string()]);
    command.args(["--gateway", &config.router.to_string(), "--mac-addr", &GATEWAY_MAC.to_string()]);
    command.args(["--dns-forward", &config.dns.to_string(), "--mtu", &config.mtu.to_string()]);
    command.arg("--log-file").arg(&config.log);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((near.into(), Prepared { command, far }))
}

impl Prepared {
    /// Starts it. What comes through the socket before it reads waits there.
    pub fn start(self) -> Result<(), PasstError> {
        let Prepared { mut command, far } = self;
        // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe; `far` is open until
        // the child has started.
        unsafe {
            command.pre_exec(move || {
                keep_open(&far)?;
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(PasstError::Spawn)?;
        // It outlives a command that only starts an instance; one that stays has to take note of its end.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}
