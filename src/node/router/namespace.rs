//! The router's namespaces and the interfaces in them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ipnet::Ipv4Net;
use rustix::fs::{FileType, fstat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Signal, getegid, geteuid, getpid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::links::{self, Links, StaticEntry};
use super::{Interface, RouterConfig, UPLINK_PROGRAM};
use machine::environment;
use machine::network::{GATEWAY_MAC, MacAddress};

/// Name of the bridge. Its ports are the instances' taps.
pub(super) const BRIDGE: &str = "wisp0";
/// Name of the uplink interface.
pub(super) const OUT: &str = "out0";
pub(super) const TAPS: &str = "tap";
/// Addresses of the router and of its gateway on the uplink.
const OUT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
const OUT_ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const OUT_PREFIX: u8 = 30;

// `linux/if_tun.h`, `linux/nsfs.h`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

pub(super) fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

/// Starts the uplink's process outside the router's namespaces. It joins them after it reads a line from its standard
/// input: by then, they must exist.
pub(super) fn prepare_uplink(dir: &Path, config: &RouterConfig) -> io::Result<Child> {
    let own = getpid().as_raw_nonzero();
    let is_root = geteuid().is_root();
    let mut command = Command::new("sh");
    environment::restrict(&mut command);
    command.args(["-c", "read -r _ && exec \"$0\" \"$@\"", UPLINK_PROGRAM]);
    command.args(["--foreground", "--quiet", "--ipv4-only", "--no-map-gw"]);
    command.args(["--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]);
    command.args(["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--ns-ifname", OUT]);
    command.args(["--address", &OUT_ADDRESS.to_string(), "--netmask", &OUT_PREFIX.to_string()]);
    command.args(["--gateway", &OUT_ROUTER.to_string(), "--dns-forward", &config.dns.to_string()]);
    command.arg("--log-file").arg(dir.join("pasta.log"));
    if is_root {
        command.args(["--runas", "0"]);
    }
    command.args(["--userns", &format!("/proc/{own}/ns/user"), "--netns", &format!("/proc/{own}/ns/net")]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn()
}

/// Moves this process into new user and network namespaces. The process must have one thread.
pub(super) fn enter() -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: no descriptor table is unshared, and no other thread relies on the namespaces.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)? };
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Moves this process into an existing network namespace and the user namespace that owns it, where the creator has all
/// capabilities. The process must have one thread.
pub(super) fn enter_again(network: &OwnedFd) -> io::Result<()> {
    let user = owner_of(network)?;
    move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Returns the network namespace of a tap. Returns `None` if `network` is not a tap, or if the kernel lacks support.
pub fn namespace_of(network: &OwnedFd) -> Option<OwnedFd> {
    let is_device = fstat(network).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice);
    if !is_device {
        return None;
    }
    let descriptor = descriptor_by(network, TUNGETDEVNETNS);
    descriptor
        .inspect_err(|error| {
            log::warn!("cannot open the tap's network namespace, so its router could not be replaced: {error}")
        })
        .ok()
}

fn owner_of(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    descriptor_by(namespace, NS_GET_USERNS)
}

fn descriptor_by(fd: &OwnedFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no argument.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
        new => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
    }
}

/// Returns true if [`configure`] has set up this network namespace for `config`.
pub(super) fn is_configured(network: &OwnedFd, config: &RouterConfig) -> bool {
    let Ok(network) = network.try_clone() else { return false };
    let address = config.router;
    // A process with threads cannot enter a user namespace, so a child looks.
    let mut command = Command::new("true");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setns, socket and ioctl are async-signal-safe, and nothing here allocates.
    unsafe {
        command.pre_exec(move || {
            enter_again(&network)?;
            if bridge_address()? == address { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        });
    }
    command.status().is_ok()
}

/// Returns the bridge's address. Async-signal-safe.
fn bridge_address() -> io::Result<Ipv4Addr> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = interface_request(BRIDGE);
    // SAFETY: the kernel reads and writes an interface request at the pointer, which is valid for the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFADDR, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after success, the request holds an address; an all-zero union would be valid, too.
    let data = unsafe { request.ifr_ifru.ifru_addr.sa_data };
    // The port comes before the address (`sockaddr_in`).
    let [_, _, a, b, c, d, ..] = data.map(|byte| byte as u8);
    Ok(Ipv4Addr::new(a, b, c, d))
}

/// Returns a request for an interface, whose name must be shorter than `IFNAMSIZ`.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero interface request is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte as libc::c_char;
    }
    request
}

/// Creates the bridge, the route to the VPC's range, and enables IP forwarding.
pub(super) fn configure(links: &mut Links, config: &RouterConfig) -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // The links carry IPv4 only. Ignore an error: a kernel without IPv6 does not have this file.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    links.set_up("lo")?;
    links.add_bridge(BRIDGE, GATEWAY_MAC, config.mtu)?;
    links.set_address(BRIDGE, config.router, 32)?;
    links.set_route(config.range, None, BRIDGE)
}

/// Removes the uplink interface of a killed router, unless the interface disappears by itself.
pub(super) fn remove_uplink(links: &mut Links) -> io::Result<()> {
    match uplink_exists()? {
        true => links.delete(OUT).or_else(|error| if uplink_exists()? { Err(error) } else { Ok(()) }),
        false => Ok(()),
    }
}

pub(super) fn uplink_exists() -> io::Result<bool> {
    Ok(links::find_index(OUT)?.is_some())
}

pub(super) fn configure_uplink(links: &mut Links, config: &RouterConfig) -> io::Result<()> {
    links.set_address(OUT, OUT_ADDRESS, OUT_PREFIX)?;
    links.set_up_with_mtu(OUT, config.mtu)?;
    links.set_route(Ipv4Net::default(), Some(OUT_ROUTER), OUT)?;
    links.set_route(config.dns.into(), Some(OUT_ROUTER), OUT)
}

/// A bridge port and its instance's addresses. Frames with other source addresses are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub tap: String,
    pub mac: MacAddress,
    pub address: Ipv4Addr,
}

impl Port {
    /// Lets traffic pass. Called when the rules for the port are in force.
    pub(super) fn open(&self, links: &mut Links) -> io::Result<()> {
        links.set_up(&self.tap)
    }
}

/// Returns the ports that an earlier router connected, from the bridge's forwarding table.
pub(super) fn connected_ports(links: &mut Links, config: &RouterConfig) -> io::Result<Vec<Port>> {
    let port = |StaticEntry { mac, port }: StaticEntry| {
        let interface = config.interfaces.iter().find(|interface| interface.mac == mac)?;
        port.starts_with(TAPS).then_some(Port { tap: port, mac, address: interface.address })
    };
    Ok(links.static_entries(BRIDGE)?.into_iter().filter_map(port).collect())
}

pub(super) fn tap_names() -> io::Result<Vec<String>> {
    // SAFETY: the call has no arguments, and the list is freed below.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut names = Vec::new();
    for index in 0.. {
        // SAFETY: the list ends with an entry without a name, and nothing after it is read.
        let name = unsafe { (*list.add(index)).if_name };
        if name.is_null() {
            break;
        }
        // SAFETY: the entry's name is NUL-terminated.
        let name = unsafe { std::ffi::CStr::from_ptr(name) };
        names.extend(name.to_str().ok().filter(|name| name.starts_with(TAPS)).map(str::to_string));
    }
    // SAFETY: this is the list from above, and it is freed only once.
    unsafe { libc::if_freenameindex(list) };
    Ok(names)
}

#[derive(Debug)]
pub(super) struct Tap {
    name: String,
    file: File,
}

impl Tap {
    pub(super) fn new() -> io::Result<Tap> {
        let file = open_tun()?;
        let mut request = interface_request(&format!("{TAPS}%d"));
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        // SAFETY: the kernel reads and writes an interface request at the pointer, which is valid for the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let letters = request.ifr_name.iter().map(|byte| *byte as u8 as char);
        Ok(Tap { name: letters.take_while(|letter| *letter != '\0').collect(), file })
    }

    /// Makes the tap the bridge port of an instance. The port is closed: the tap is down and refuses frames. The tap
    /// exists as long as the returned descriptor is open.
    pub(super) fn connect(
        self,
        links: &mut Links,
        config: &RouterConfig,
        interface: &Interface,
    ) -> io::Result<(Port, OwnedFd)> {
        let Tap { name, file } = self;
        links.add_port(&name, BRIDGE, config.mtu)?;
        links.set_neighbor(interface.address, interface.mac, BRIDGE)?;
        // The bridge does not learn addresses.
        links.add_static_entry(interface.mac, &name)?;
        Ok((Port { tap: name, mac: interface.mac, address: interface.address }, file.into()))
    }
}

const KERNEL_NEEDS: &str = "VPCs require a kernel with the nftables families inet and bridge (CONFIG_NF_TABLES_INET \
                            and CONFIG_NF_TABLES_BRIDGE)";

pub(super) fn set_rules(rules: &str) -> io::Result<()> {
    const UNSUPPORTED: &str = "Operation not supported";
    feed("nft", &["-f", "-"], rules).map_err(|error| match error.to_string() {
        message if message.contains(UNSUPPORTED) => io::Error::other(format!("{message}\n{KERNEL_NEEDS}")),
        _ => error,
    })
}

/// Prepares a command with root's path added, because the program may be installed only there.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    environment::restrict(&mut command);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Runs a program with `input` as its standard input. The error of a failed program contains its standard error.
fn feed(program: &str, args: &[&str], input: &str) -> io::Result<()> {
    let mut command = self::program(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    // Ignore a write error: a program that stops reading reports the reason on its standard error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} failed with {}: {}", output.status, message.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn namespace_of_non_tap_is_none() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(namespace_of(&near.into()).is_none());
        assert!(namespace_of(&File::open("/dev/null").unwrap().into()).is_none());
    }

    #[test]
    fn namespace_has_owner_and_file_has_none() {
        assert!(owner_of(&File::open("/dev/null").unwrap().into()).is_err());
        // The namespace of this process is owned by its own user namespace, or by a parent that it cannot access.
        if let Ok(owner) = owner_of(&File::open("/proc/self/ns/net").unwrap().into()) {
            assert_ne!(fstat(owner).unwrap().st_ino, std::fs::metadata("/proc/self/ns/net").unwrap().ino());
        }
    }
}
