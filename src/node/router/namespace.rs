//! The router's namespaces and the interfaces in them.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, getegid, geteuid, getpid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

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
    let mut command = program("ip");
    command.args(["-oneline", "-family", "inet", "address", "show", "dev", BRIDGE]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(network) = network.try_clone() else { return false };
    // SAFETY: ioctl and setns are async-signal-safe, and nothing else here allocates.
    unsafe { command.pre_exec(move || enter_again(&network)) };
    let address = format!(" {}/32 ", config.router);
    command.output().is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&address))
}

/// Creates the bridge, connects the first interface's tap and enables IP forwarding.
pub(super) fn configure(config: &RouterConfig, first: &Interface, tap: Tap) -> io::Result<OwnedFd> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // The links carry IPv4 only. Ignore an error: a kernel without IPv6 does not have this file.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let RouterConfig { range, router, mtu, .. } = config;
    ip(&format!(
        "link set lo up
link add {BRIDGE} address {GATEWAY_MAC} mtu {mtu} type bridge mcast_snooping 0
link set {BRIDGE} arp off up
address add {router}/32 dev {BRIDGE}
route add {range} dev {BRIDGE}
{}",
        tap.lines(config, first)
    ))?;
    tap.enter_in_bridge(first)
}

/// Removes the uplink interface of a killed router, unless the interface disappears by itself.
pub(super) fn remove_uplink() -> io::Result<()> {
    match uplink_exists()? {
        true => ip(&format!("link delete {OUT}\n")).or_else(|error| if uplink_exists()? { Err(error) } else { Ok(()) }),
        false => Ok(()),
    }
}

pub(super) fn uplink_exists() -> io::Result<bool> {
    let name = CString::new(OUT)?;
    // SAFETY: the name is NUL-terminated.
    Ok(unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

pub(super) fn configure_uplink(config: &RouterConfig) -> io::Result<()> {
    ip(&format!(
        "address replace {OUT_ADDRESS}/{OUT_PREFIX} dev {OUT}
link set {OUT} mtu {mtu} up
route replace default via {OUT_ROUTER} dev {OUT}
route replace {dns}/32 via {OUT_ROUTER} dev {OUT}
",
        mtu = config.mtu,
        dns = config.dns,
    ))
}

/// Connects an instance's tap. The tap exists as long as its descriptor is open.
pub(super) fn connect(config: &RouterConfig, interface: &Interface, tap: Tap) -> io::Result<OwnedFd> {
    ip(&tap.lines(config, interface))?;
    tap.enter_in_bridge(interface)
}

/// A bridge port and its instance's addresses. Frames with other source addresses are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub tap: String,
    pub mac: MacAddress,
    pub address: Ipv4Addr,
}

/// Returns the ports that an earlier router connected, from the bridge's forwarding table.
pub(super) fn connected_ports(config: &RouterConfig) -> io::Result<Vec<Port>> {
    let mut command = program("bridge");
    let output = command.args(["fdb", "show", "br", BRIDGE]).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("bridge failed with {}: {}", output.status, message.trim())));
    }
    Ok(ports_in(&String::from_utf8_lossy(&output.stdout), config))
}

fn ports_in(entries: &str, config: &RouterConfig) -> Vec<Port> {
    let port = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mac, "dev", tap, ..] = words.as_slice() else { return None };
        let is_connected = tap.starts_with(TAPS) && words.contains(&"static");
        let interface = config.interfaces.iter().find(|interface| interface.mac.to_string() == *mac)?;
        let Interface { mac, address, .. } = *interface;
        is_connected.then(|| Port { tap: tap.to_string(), mac, address })
    };
    entries.lines().filter_map(port).collect()
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
        // SAFETY: an all-zero interface request is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (target, byte) in request.ifr_name.iter_mut().zip(format!("{TAPS}%d").bytes()) {
            *target = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        // SAFETY: the kernel reads and writes an interface request at the pointer, which is valid for the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let letters = request.ifr_name.iter().map(|byte| *byte as u8 as char);
        Ok(Tap { name: letters.take_while(|letter| *letter != '\0').collect(), file })
    }

    pub(super) fn port(&self, interface: &Interface) -> Port {
        Port { tap: self.name.clone(), mac: interface.mac, address: interface.address }
    }

    /// Returns the `ip` commands that make the tap the bridge port of `interface`.
    fn lines(&self, config: &RouterConfig, interface: &Interface) -> String {
        let (Tap { name, .. }, Interface { address, mac, .. }, mtu) = (self, interface, config.mtu);
        format!(
            "link set {name} mtu {mtu} master {BRIDGE} up
link set {name} type bridge_slave isolated on learning off flood off mcast_flood off bcast_flood off
neighbor replace {address} lladdr {mac} nud permanent dev {BRIDGE}
"
        )
    }

    /// Adds the instance's MAC address to the bridge's forwarding table, because the bridge does not learn addresses.
    fn enter_in_bridge(self, interface: &Interface) -> io::Result<OwnedFd> {
        let line = format!("fdb replace {} dev {} master static\n", interface.mac, self.name);
        feed("bridge", &["-batch", "-"], &line)?;
        Ok(self.file.into())
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

fn ip(lines: &str) -> io::Result<()> {
    feed("ip", &["-batch", "-"], lines)
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
