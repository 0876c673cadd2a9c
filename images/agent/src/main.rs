//! `wisp-init`: the first process of a Wisp guest, and its agent.
//!
//! As process 1 it is a complete init: it mounts the kernel's file systems, serves the host over vsock, reaps orphans
//! and stops the machine (see [`init`]). In a guest with its own init it runs as `wisp-init --agent` and only serves.
//! In an initramfs it starts such a guest.
//!
//! Under software KVM each system call before the agent is ready delays the boot by up to a millisecond. Hence there is
//! no Rust runtime (`no_main`) and only one malloc arena, and the work that the host waits for is done first.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, reason = "the entry is not built for tests"))]

mod boot_timer;
mod init;
mod serve;
mod signals;

use wisp_agent::agent::{Agent, Listener};
use wisp_agent::{AGENT_PORT, MARK_AGENT_READY};

use crate::boot_timer::BootTimer;

const USAGE: &str = "\
wisp-init: the first process of a Wisp guest, and its agent

  wisp-init              as process 1: bring up the guest and serve the host; as /init of an
                         initramfs: start the agent and the root file system's own init
  wisp-init --agent      serve the host, in a guest with its own init
  wisp-init --network    configure the network interface and DNS, unless already configured
  wisp-init --version    print the version";

/// The C library's entry point, which replaces Rust's.
///
/// # Safety
/// `argv` must be the argument of C's `main`. Only the C library calls this function.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(_argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    prepare();
    // The kernel passes words of its command line to process 1. They are not wisp-init's options.
    if rustix::process::getpid().as_raw_nonzero().get() == 1 {
        // SAFETY: by this function's contract; the kernel gives process 1 a name.
        init::run(unsafe { std::ffi::CStr::from_ptr(*argv) }.to_bytes());
    }
    run_as_command(std::env::args().nth(1).as_deref())
}

#[cfg(not(test))]
fn prepare() {
    // SAFETY: no other thread runs yet, and the call accepts this value.
    unsafe {
        // Otherwise each thread reserves its own arena, which takes four system calls.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Runs in a guest with a different init. Returns the exit code.
fn run_as_command(argument: Option<&str>) -> libc::c_int {
    match argument {
        Some("--agent") => run_as_agent(),
        Some("--network") => init::configure_network(),
        Some("--version") => {
            println!("wisp-init {}", env!("CARGO_PKG_VERSION"));
            0
        }
        Some("--help") => {
            println!("{USAGE}");
            0
        }
        _ => {
            eprintln!("{USAGE}");
            2
        }
    }
}

fn run_as_agent() -> libc::c_int {
    match Listener::bind() {
        Ok(listener) => {
            if let Some(timer) = BootTimer::open() {
                timer.mark(MARK_AGENT_READY);
            }
            let agent: &'static Agent = Box::leak(Box::new(Agent::new(false)));
            // Ignore an error: without this thread, the guest gets no keys or user data, but is still reachable.
            let _ = std::thread::Builder::new().name("seed".into()).spawn(|| {
                // Wisp's initramfs has already done this, unless the root was read-only at that time.
                init::renew_identity(agent);
                agent.apply_seed();
            });
            serve::run(agent, Some(&listener), None)
        }
        Err(error) => {
            eprintln!("wisp-init: cannot listen on vsock port {AGENT_PORT}: {error}");
            1
        }
    }
}
