//! User-mode networking with passt(1), one process per guest.
//!
//! passt forwards the guest's connections through ordinary sockets. It needs no privileges and does not change the
//! host's network configuration. Published ports do not involve passt: the VMM itself accepts those connections.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::probe::{self, NamespaceSetting};
use machine::descriptors::keep_open;
use machine::environment;
use machine::network::GATEWAY_MAC;

pub const PROGRAM: &str = "passt";
pub const INSTALL: &str = "sudo apt install passt";

/// Network configuration of the guest. It must match the DHCP server's.
#[derive(Debug, Clone)]
pub struct PasstConfig {
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    pub router: Ipv4Addr,
    /// passt forwards DNS queries sent to this address to the host's name server.
    pub dns: Ipv4Addr,
    pub mtu: u16,
    pub log: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    #[error("{PROGRAM} is not installed. To install it, run `{INSTALL}`")]
    Missing,
    #[error("{} disables user namespaces, which {PROGRAM} requires. To enable them, run `{}`", .0.name, .0.fix())]
    Forbidden(NamespaceSetting),
    #[error("cannot start {PROGRAM}: {0}")]
    Spawn(#[source] io::Error),
}

pub fn check() -> Result<(), PasstError> {
    if !probe::is_installed(PROGRAM) {
        return Err(PasstError::Missing);
    }
    match NamespaceSetting::in_force() {
        Some(setting) if setting.for_all => Err(PasstError::Forbidden(setting)),
        _ => Ok(()),
    }
}

#[derive(Debug)]
pub struct Prepared {
    command: Command,
    far: OwnedFd,
}

/// Prepares a passt process and returns the VMM's end of the socket for frames. passt exits when that end is closed.
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
    /// Starts the process. The socket buffers the guest's frames until passt reads them.
    pub fn start(self) -> Result<(), PasstError> {
        let Prepared { mut command, far } = self;
        // SAFETY: between fork and exec, only fcntl and setsid are called, which are async-signal-safe. `far` is open
        // until the child has started.
        unsafe {
            command.pre_exec(move || {
                keep_open(&far)?;
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(PasstError::Spawn)?;
        // Reap passt if it exits before this command does.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}
