//! Configures the network interface, without external programs.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::netlink::Requests;
use super::resolver;
use crate::network::Network;

/// The kernel's name for the interface of the only network device.
const NAME: &CStr = c"eth0";
/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`, linux/include/net/flow.h).
const LOOPBACK_INDEX: u32 = 1;
const FLAGS: &str = "/sys/class/net/eth0/flags";

/// File of the link-local IPv6 address mode (linux/Documentation/networking/ip-sysctl.rst, "addr_gen_mode").
const ADDRESS_GENERATION: &str = "/proc/sys/net/ipv6/conf/eth0/addr_gen_mode";
const NO_ADDRESS: &str = "1";

/// Intervals at which the kernel probes managed neighbors, in milliseconds. There are none, but each wake-up costs
/// an idle guest thousands of instructions.
const NEIGHBOR_PROBES: [&str; 2] = [
    "/proc/sys/net/ipv4/neigh/default/interval_probe_time_ms",
    "/proc/sys/net/ipv6/neigh/default/interval_probe_time_ms",
];
const ONE_DAY: &str = "86400000";

/// Index of the interface that [`bring_up`] left without an address, or zero. Asking the kernel takes two sockets, a
/// tenth of the time that a restored guest needs to become ready.
static WITHOUT_ADDRESS: AtomicU32 = AtomicU32::new(0);

/// Leaves the interface without a link-local IPv6 address, and probes no neighbors. Wisp's networks only carry IPv4, and
/// duplicate address detection and router solicitations would keep an idle guest busy. Has no effect once it is up.
pub fn quiet() {
    let files = NEIGHBOR_PROBES.map(|file| (file, ONE_DAY));
    for (file, value) in files.into_iter().chain([(ADDRESS_GENERATION, NO_ADDRESS)]) {
        // Ignore an error: a kernel without IPv6 or without a network device does not have the file.
        let _ = fs::write(file, value);
    }
}

/// Brings the interface up without an address, in a guest that gets its identity after a restore. The receive buffers
/// are then part of the snapshot.
pub fn bring_up() -> io::Result<()> {
    let index = index()?;
    let mut requests = Requests::default();
    requests.add(libc::RTM_NEWLINK, 0, &link(index, UP));
    requests.send()?;
    WITHOUT_ADDRESS.store(index, Ordering::Relaxed);
    Ok(())
}

/// Brings up `lo`. The kernel then assigns 127.0.0.1.
pub fn bring_up_loopback() -> io::Result<()> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_NEWLINK, 0, &link(LOOPBACK_INDEX, UP));
    requests.send()
}

/// Brings the interface up and sets or replaces its address, router and MTU. Tries all, and returns the first error.
pub fn configure(network: &Network) -> io::Result<()> {
    let (index, before) = match WITHOUT_ADDRESS.swap(0, Ordering::Relaxed) {
        0 => (index()?, address()?),
        index => (index, None),
    };
    let mut requests = Requests::default();
    let mtu = u32::from(network.mtu).to_ne_bytes();
    requests
        .add(libc::RTM_NEWLINK, 0, &link(index, UP))
        .attribute(libc::IFLA_ADDRESS, &network.mac)
        .attribute(libc::IFLA_MTU, &mtu);
    let now = Address { address: network.address, prefix_length: network.prefix_length };
    if before != Some(now) {
        if let Some(before) = before {
            requests.add(libc::RTM_DELADDR, 0, &before.body(index)).attribute(libc::IFA_LOCAL, &before.octets());
        }
        let broadcast = now.address | !network.netmask();
        requests
            .add(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &now.body(index))
            .attribute(libc::IFA_LOCAL, &now.octets())
            .attribute(libc::IFA_ADDRESS, &now.octets())
            .attribute(libc::IFA_BROADCAST, &broadcast.octets());
    }
    let mut route = requests.add(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &DEFAULT_ROUTE);
    if !network.router.is_unspecified() {
        route.attribute(libc::RTA_GATEWAY, &network.router.octets());
    }
    route.attribute(libc::RTA_OIF, &index.to_ne_bytes());
    requests.send()
}

/// Configures the interfaces and name resolution, in case the guest's own init does not. That init may replace the
/// configuration. Tries all steps, and returns the first error.
pub fn configure_all(network: &Network) -> io::Result<()> {
    let outcomes = [bring_up_loopback(), configure(network), resolver::configure(network)];
    outcomes.into_iter().collect()
}

/// Returns true if the guest itself manages the interface: it is up, or a daemon that brings interfaces up is running.
#[must_use]
pub fn is_managed() -> bool {
    const DAEMONS: [&str; 2] = ["/run/systemd/netif/state", "/run/NetworkManager"];
    DAEMONS.iter().any(|path| Path::new(path).exists()) || is_up(&fs::read_to_string(FLAGS).unwrap_or_default())
}

fn is_up(flags: &str) -> bool {
    let digits = flags.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).is_ok_and(|flags| flags & UP != 0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    address: Ipv4Addr,
    prefix_length: u8,
}

impl Address {
    /// Returns a `struct ifaddrmsg` (rtnetlink(7)): family, prefix, flags, scope, interface.
    fn body(self, index: u32) -> [u8; 8] {
        let [a, b, c, d] = index.to_ne_bytes();
        [libc::AF_INET as u8, self.prefix_length, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]
    }

    fn octets(self) -> [u8; 4] {
        self.address.octets()
    }
}

const UP: u32 = libc::IFF_UP as u32;

/// Default route, a `struct rtmsg` (rtnetlink(7)): family, prefixes, service, table, protocol, scope, type, flags.
const DEFAULT_ROUTE: [u8; 12] = [
    libc::AF_INET as u8,
    0,
    0,
    0,
    libc::RT_TABLE_MAIN,
    libc::RTPROT_BOOT,
    libc::RT_SCOPE_UNIVERSE,
    libc::RTN_UNICAST,
    0,
    0,
    0,
    0,
];

/// Returns a `struct ifinfomsg` (rtnetlink(7)): family, type, index, flags, mask of the flags to change.
fn link(index: u32, flags: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&flags.to_ne_bytes());
    body
}

fn index() -> io::Result<u32> {
    // SAFETY: the name ends with a zero byte.
    match unsafe { libc::if_nametoindex(NAME.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn address() -> io::Result<Option<Address>> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let ask = |request: libc::c_ulong| {
        // SAFETY: all zeroes is a valid `ifreq`.
        let mut message: libc::ifreq = unsafe { std::mem::zeroed() };
        for (slot, byte) in message.ifr_name.iter_mut().zip(NAME.to_bytes()) {
            *slot = libc::c_char::from_ne_bytes([*byte]);
        }
        // SAFETY: `message` is an `ifreq`, as these requests take.
        if unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut message) } != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) { Ok(None) } else { Err(error) };
        }
        // SAFETY: these requests answer with an address.
        let data = unsafe { message.ifr_ifru.ifru_addr }.sa_data;
        let octet = |index: usize| data[2 + index].to_ne_bytes()[0];
        Ok(Some(Ipv4Addr::new(octet(0), octet(1), octet(2), octet(3))))
    };
    let Some(address) = ask(libc::SIOCGIFADDR as _)? else { return Ok(None) };
    let netmask = ask(libc::SIOCGIFNETMASK as _)?.unwrap_or(Ipv4Addr::BROADCAST);
    Ok(Some(Address { address, prefix_length: netmask.to_bits().leading_ones() as u8 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_up_reads_iff_up_from_flags() {
        assert!(is_up("0x1003\n"));
        assert!(!is_up("0x1002\n") && !is_up("") && !is_up("up"));
    }
}
