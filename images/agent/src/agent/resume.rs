//! What a guest that was saved has to learn before anything else is asked of it: the time, randomness of its own, and who
//! it is now.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};

use super::system;
use crate::protocol::Resumed;
use crate::seed::Seed;

/// The most entropy that is taken at once: what the kernel's generator holds is 32 bytes.
const MAX_ENTROPY: usize = 256;
/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` (linux/include/uapi/linux/random.h).
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `struct rand_pool_info` (linux/include/uapi/linux/random.h).
#[repr(C)]
struct RandomPool {
    /// How many bits of the buffer nobody knows.
    entropy_bits: libc::c_int,
    size: libc::c_int,
    buffer: [u8; MAX_ENTROPY],
}

/// Brings the guest up to date, and returns what is still to be applied. The error is a sentence.
pub fn resume(resumed: &Resumed) -> Result<Option<Seed>, String> {
    // First: what runs already may draw random numbers at any time.
    reseed(&resumed.entropy).map_err(|error| format!("the random number generator takes no entropy: {error}"))?;
    set_time(resumed.time).map_err(|error| format!("the clock cannot be set: {error}"))?;
    let Some(bytes) = &resumed.seed else { return Ok(None) };
    let seed = Seed::decode(bytes).ok_or("the seed is none")?;
    if let Some(name) = &seed.hostname {
        system::set_hostname(name).map_err(|error| format!("cannot set the host name to {name:?}: {error}"))?;
    }
    Ok(Some(seed))
}

fn set_time(time: Duration) -> io::Result<()> {
    let tv_sec = time.as_secs().try_into().map_err(io::Error::other)?;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: time.subsec_nanos().into() })?)
}

/// Has the kernel's generator forget what a copy of this guest knows, too.
fn reseed(entropy: &[u8]) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/urandom")?;
    let size = entropy.len().min(MAX_ENTROPY);
    let mut pool =
        RandomPool { entropy_bits: size as libc::c_int * 8, size: size as libc::c_int, buffer: [0; MAX_ENTROPY] };
    pool.buffer[..size].copy_from_slice(&entropy[..size]);
    // SAFETY: the kernel reads the two numbers, and of the buffer as many bytes as they say, which it has.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this request takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
