//! SSH: starts a server for each connection, if the image has one. Only the listener stays in memory.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use wisp_agent::agent::{Agent, Program, Stdio, User, environment_for, environment_strings, spawn};

/// The SSH server. It runs in inetd mode: the connection is its standard input and output.
const SERVER: &str = "/usr/sbin/dropbear";
/// Directory of the host key, which the server creates at the first connection (`-R`).
const KEYS: &str = "/etc/dropbear";
/// File for the standard error of all servers.
const LOG: &str = "/run/dropbear.log";
const PORT: u16 = 22;
const LIMIT: usize = 32;
/// Time to wait after a connection cannot be accepted, for example because no descriptor is free.
const RECOVERY: Duration = Duration::from_millis(100);

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Listens in a new thread, if the server is installed.
pub fn listen(agent: &'static Agent) {
    if !Path::new(SERVER).exists() {
        return;
    }
    let started = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).and_then(|listener| {
        thread::Builder::new().name("ssh".into()).stack_size(64 << 10).spawn(move || accept(agent, &listener))
    });
    if let Err(error) = started {
        eprintln!("wisp-init: cannot listen for SSH: {error}");
    }
}

fn accept(agent: &'static Agent, listener: &TcpListener) {
    for connection in listener.incoming() {
        match connection {
            Ok(connection) if CONNECTIONS.fetch_add(1, Ordering::Relaxed) < LIMIT => {
                let serve = move || {
                    if let Err(error) = serve(agent, connection) {
                        eprintln!("wisp-init: {SERVER}: {error}");
                    }
                    CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
                };
                let started = thread::Builder::new().name("ssh-session".into()).stack_size(64 << 10).spawn(serve);
                if started.is_err() {
                    CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
                }
            }
            // Over the limit: close the connection.
            Ok(_) => drop(CONNECTIONS.fetch_sub(1, Ordering::Relaxed)),
            Err(_) => thread::sleep(RECOVERY),
        }
    }
}

/// Runs the server on a connection. The server has no password logins and logs to syslog.
fn serve(agent: &Agent, connection: TcpStream) -> io::Result<()> {
    // Hold this until the server has started, because it reads its key then.
    let identity = agent.hold_identity();
    fs::create_dir_all(KEYS)?;
    let program = Program {
        path: c"/usr/sbin/dropbear".into(),
        argv: [c"dropbear", c"-i", c"-R"].map(Into::into).into(),
        env: environment_strings(environment_for(&User::own()))?,
        cwd: Some(c"/".into()),
    };
    let log = fs::OpenOptions::new().append(true).create(true).open(LOG)?;
    let stdio = Stdio::Descriptors([connection.as_fd(), connection.as_fd(), log.as_fd()]);
    let child = agent.children.spawn(|| spawn(&program, stdio))?;
    drop(identity);
    drop(connection);
    agent.children.reap(child);
    Ok(())
}
