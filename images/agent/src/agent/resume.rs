//! Updates a restored guest before it serves any request: its random numbers, clock, network and identity.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::time::{ClockId, Timespec, clock_settime};

use super::identity::{self, IdentityChange};
use super::{Agent, interface, listener, resolver, system};
use crate::resumed::{RESUMED_PORT, RESUMED_PORTS, Resumed, SENTINEL_PORT};
use crate::{BOOT_TIMER_PORT, MARK_AGENT_READY};

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` (linux/include/uapi/linux/random.h).
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `struct rand_pool_info` (linux/include/uapi/linux/random.h).
#[repr(C)]
struct RandomPool {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    buffer: [u8; 32],
}

/// A connection that breaks when the guest is restored, and the devices needed then.
#[derive(Debug)]
pub struct Sentinel {
    socket: OwnedFd,
    ports: OwnedFd,
    random: OwnedFd,
}

impl Sentinel {
    /// Returns `None` if the host does not serve the port, or if the guest lacks a device.
    #[must_use]
    pub fn connect() -> Option<Self> {
        let socket = listener::connect_to_host(SENTINEL_PORT).ok()?;
        let device = |path: &str| open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Some(Self { socket, ports: device("/dev/port").ok()?, random: device("/dev/urandom").ok()? })
    }

    /// Connects again, with the devices that are already open.
    #[must_use]
    pub fn reconnect(self) -> Option<Self> {
        Some(Self { socket: listener::connect_to_host(SENTINEL_PORT).ok()?, ..self })
    }

    /// Updates the guest if it was restored, and notifies the VMM. Returns true if there is a seed to apply.
    pub fn resume(&self, agent: &Agent) -> bool {
        let mut bytes = [0; RESUMED_PORTS];
        let read = rustix::io::pread(&self.ports, &mut bytes[..], RESUMED_PORT.into());
        let Some(resumed) = read.ok().and_then(|count| Resumed::decode(&bytes[..count])) else { return false };
        // First, because running processes may draw random numbers at any time.
        if let Some(entropy) = &resumed.entropy
            && let Err(error) = self.reseed(entropy)
        {
            eprintln!("wisp-init: cannot reseed the random number generator: {error}");
        }
        if let Err(error) = set_time(resumed.time) {
            eprintln!("wisp-init: cannot set the clock: {error}");
        }
        if let Some(name) = &resumed.hostname
            && let Err(error) = system::set_hostname(name)
        {
            eprintln!("wisp-init: cannot set the host name to {name:?}: {error}");
        }
        // Lock before the guest is reachable at its address: SSH must not present another instance's host key.
        let renewal = resumed.instance_id.as_deref().map(|id| (id, agent.hold_identity()));
        if let Some(network) = &resumed.network {
            if let Err(error) = interface::configure(network) {
                eprintln!("wisp-init: cannot configure the network interface: {error}");
            }
            if agent.is_init()
                && let Err(error) = resolver::configure(network)
            {
                eprintln!("wisp-init: cannot configure name resolution: {error}");
            }
        }
        let _ = rustix::io::pwrite(&self.ports, &[MARK_AGENT_READY], BOOT_TIMER_PORT.into());
        // After the ready mark, so that the host does not wait. This thread accepts connections only after the renewal.
        if let Some((instance_id, identity)) = renewal {
            identity::renew(&agent.children, instance_id, IdentityChange::Resume);
            drop(identity);
        }
        resumed.seed
    }

    /// Reseeds the kernel's random number generator. Otherwise, copies of this guest would draw the same numbers.
    fn reseed(&self, entropy: &[u8; 32]) -> io::Result<()> {
        let size = entropy.len() as libc::c_int;
        let pool = RandomPool { entropy_bits: size * 8, size, buffer: *entropy };
        // SAFETY: the kernel reads the two numbers, and `size` bytes of the buffer, which has that size.
        if unsafe { libc::ioctl(self.random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: this request takes no argument.
        if unsafe { libc::ioctl(self.random.as_raw_fd(), RNDRESEEDCRNG as _) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsFd for Sentinel {
    /// Returns a descriptor that is readable once the connection has broken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set_time(time: Duration) -> io::Result<()> {
    let tv_sec = time.as_secs().try_into().map_err(io::Error::other)?;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: time.subsec_nanos().into() })?)
}
