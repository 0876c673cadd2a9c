//! Process 1 of a guest.
//!
//! [`run`] marks the start of user space, listens, and marks the agent as ready. It mounts file systems and sets the
//! host name and network while the host's first connection waits in the listener's queue. It serves connections last,
//! so that no command runs before all file systems are mounted.

mod command_line;
mod console;
mod initial_ram_disk;
mod mounts;

mod ssh;
mod standard;
mod stop;

use std::fs;
use std::io;

use wisp_agent::agent::{self, Agent, IdentityChange, Listener};
use wisp_agent::{AGENT_PORT, MARK_AGENT_READY, MARK_INIT_STARTED};

use self::command_line::CommandLine;
use crate::boot_timer::BootTimer;
use crate::serve;
use crate::signals::{Ending, Signals};

/// Runs process 1. `program` is the name under which the kernel started it.
pub fn run(program: &[u8]) -> ! {
    let in_ram_disk = program == initial_ram_disk::PROGRAM.as_bytes();
    let mut timer = BootTimer::open();
    if timer.is_none() {
        mounts::mount_devices();
        timer = BootTimer::open();
    }
    if let Some(timer) = &timer {
        timer.mark(MARK_INIT_STARTED);
    }
    let timer = standard::reserve_standard_streams(timer);
    if in_ram_disk {
        initial_ram_disk::enter_root();
    }

    let listener = Listener::bind();
    if let (Ok(_), Some(timer)) = (&listener, &timer) {
        timer.mark(MARK_AGENT_READY);
    }
    drop(timer);

    // Before any thread, because threads inherit the signal mask.
    let signals = Signals::take_over();
    mounts::mount_all();
    let command_line = CommandLine::read();
    set_hostname(&command_line);
    if let Err(error) = agent::bring_up_loopback() {
        eprintln!("wisp-init: cannot bring up lo: {error}");
    }
    agent::quiet_interface();
    let set = match &command_line.network {
        Some(network) => agent::configure_interface(network).and_then(|()| agent::configure_resolver(network)),
        // A guest without addresses gets them when it is restored from a snapshot. It may have no interface at all.
        None => {
            agent::prepare_resolver();
            agent::bring_up_interface()
                .or_else(|error| if error.raw_os_error() == Some(libc::ENODEV) { Ok(()) } else { Err(error) })
        }
    };
    if let Err(error) = set {
        eprintln!("wisp-init: cannot configure the network interface: {error}");
    }
    let agent: &'static Agent = Box::leak(Box::new(Agent::new(true)));
    match &command_line.instance_id {
        Some(instance_id) => agent::renew_identity(&agent.children, instance_id, IdentityChange::Boot),
        None => agent::prepare_identity(),
    }
    if command_line.console_shell {
        console::keep_shell(agent);
    }
    ssh::listen(agent);
    announce(&listener);
    if command_line.seed {
        let applying = std::thread::Builder::new().name("seed".into()).spawn(|| agent.apply_seed());
        if let Err(error) = applying {
            eprintln!("wisp-init: cannot create a thread for the seed: {error}");
        }
    }

    match signals {
        Ok(mut signals) => {
            serve::run(agent, listener.as_ref().ok(), Some(&mut signals));
            stop::stop(agent, &mut signals)
        }
        // Without signals, children cannot be reaped and the guest cannot be stopped, but connections can be served.
        Err(error) => {
            eprintln!("wisp-init: cannot receive signals: {error}");
            serve::run(agent, listener.as_ref().ok(), None);
            stop::power_off(Ending::PowerOff)
        }
    }
}

/// Renews the identity of a guest that has its own init.
pub fn renew_identity(agent: &Agent) {
    if let Some(instance_id) = CommandLine::read().instance_id {
        let _identity = agent.hold_identity();
        agent::renew_identity(&agent.children, &instance_id, IdentityChange::Boot);
    }
}

/// Configures the network if no other program does. Returns the exit code.
pub fn configure_network() -> libc::c_int {
    let Some(network) = CommandLine::read().network else { return 0 };
    if agent::network_is_managed() {
        return 0;
    }
    match agent::configure_network(&network) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("wisp-init: cannot configure the network: {error}");
            1
        }
    }
}

/// Reports on the console that the guest is up, in one write.
fn announce(listener: &io::Result<Listener>) {
    let line = match listener {
        Ok(_) => format!("wisp-init: ready, agent on vsock port {AGENT_PORT}\n"),
        Err(error) => {
            format!("wisp-init: ready, without an agent: cannot listen on vsock port {AGENT_PORT}: {error}\n")
        }
    };
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// Sets the host name from the kernel's command line, else from `/etc/hostname`, else `wisp`.
fn set_hostname(command_line: &CommandLine) {
    let name = command_line
        .hostname
        .clone()
        .or_else(|| fs::read_to_string("/etc/hostname").ok().map(|text| text.trim().to_owned()))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "wisp".to_owned());
    if let Err(errno) = rustix::system::sethostname(name.as_bytes()) {
        eprintln!("wisp-init: cannot set the host name to {name:?}: {errno}");
    }
}
