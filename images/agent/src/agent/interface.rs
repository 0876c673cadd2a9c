//! Setting the network interface, by the requests of netdevice(7): six of them, and no program.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::network::Network;

/// The interface of the only network device, as the kernel names it.
const NAME: &[u8] = b"eth0";
/// Where the resolver's configuration is kept in an image whose `/etc/resolv.conf` leads there.
const RESOLVER: &str = "/run/resolv.conf";
/// The domain that names are looked for in, as in EC2's us-east-1.
const DOMAIN: &str = "ec2.internal";

/// A socket for requests.
#[derive(Debug)]
struct Requests(OwnedFd);

/// Gives the interface its addresses, its router and its MTU, and brings it up. Addresses and a router that it had are gone.
///
/// # Errors
/// The first that the kernel answered; what came before it is done.
pub fn configure(network: &Network) -> io::Result<()> {
    let requests = Requests::new()?;
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (slot, byte) in address.sa_data.iter_mut().zip(network.mac) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    requests.send(libc::SIOCSIFHWADDR as _, libc::__c_anonymous_ifr_ifru { ifru_hwaddr: address })?;
    requests.send(libc::SIOCSIFMTU as _, libc::__c_anonymous_ifr_ifru { ifru_mtu: network.mtu.into() })?;
    requests.send(libc::SIOCSIFADDR as _, libc::__c_anonymous_ifr_ifru { ifru_addr: internet(network.address) })?;
    requests
        .send(libc::SIOCSIFNETMASK as _, libc::__c_anonymous_ifr_ifru { ifru_netmask: internet(network.netmask()) })?;
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    requests.send(libc::SIOCSIFFLAGS as _, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })?;
    // There may be none.
    let _ = requests.route(libc::SIOCDELRT as _, Ipv4Addr::UNSPECIFIED);
    requests.route(libc::SIOCADDRT as _, network.router)
}

/// Says where names are looked up, in an image that leaves it to the agent.
///
/// # Errors
/// Why it could not be written.
pub fn configure_resolver(network: &Network) -> io::Result<()> {
    let servers = network.dns.iter().map(|server| format!("nameserver {server}\n"));
    fs::write(RESOLVER, format!("search {DOMAIN}\n{}", servers.collect::<String>()))
}

impl Requests {
    fn new() -> io::Result<Self> {
        Ok(Self(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?))
    }

    fn send(&self, request: libc::c_ulong, argument: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
        let mut message = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: argument };
        for (slot, byte) in message.ifr_name.iter_mut().zip(NAME) {
            *slot = libc::c_char::from_ne_bytes([*byte]);
        }
        // SAFETY: `message` is an `ifreq`, as these requests take.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, &raw const message) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Adds or removes the default route, by `router` or by whichever.
    fn route(&self, request: libc::c_ulong, router: Ipv4Addr) -> io::Result<()> {
        // SAFETY: all zeroes is a valid `rtentry`: numbers and null pointers.
        let mut entry: libc::rtentry = unsafe { std::mem::zeroed() };
        entry.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
        entry.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
        entry.rt_gateway = internet(router);
        let by_router = if router.is_unspecified() { 0 } else { libc::RTF_GATEWAY };
        entry.rt_flags = libc::RTF_UP | by_router;
        // SAFETY: `entry` is an `rtentry`, as these requests take, without a device's name.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, &raw const entry) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// `struct sockaddr_in` (ip(7)) in its general form: a port of 0, and the address.
fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut general = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    for (slot, byte) in general.sa_data[2..].iter_mut().zip(address.octets()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    general
}
