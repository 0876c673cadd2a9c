//! A running server: its thread, and how it ends.

use std::net::SocketAddr;
use std::process::{Command, ExitStatus, exit};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::super::template;
use api::actions::{Background, LocalActions};
use api::server;
use api::service::Identity;
use api::sigv4::AccessKey;
use ec2::capacity::InstanceSize;
use ec2::network::REGION;

pub struct Server {
    endpoint: String,
    shutdown: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    events: (Sender<Event>, Receiver<Event>),
}

/// The exit code of a process that ends itself at SIGINT, as in a shell.
const INTERRUPTED: i32 = 130;

enum Event {
    /// SIGINT or SIGTERM.
    Signal(Signal),
    /// The command has ended.
    Ended(std::io::Result<ExitStatus>),
}

impl Server {
    /// Starts a server in a thread of its own. Port 0 stands for a free port.
    pub fn start(key: AccessKey, address: SocketAddr) -> anyhow::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the server's runtime")?;
        let listener = runtime.block_on(TcpListener::bind(address));
        let listener = listener.with_context(|| format!("cannot listen on {address}; use --port for another port"))?;
        let address = listener.local_addr().context("cannot get the address of the server")?;
        let identity = Identity { key, region: REGION, hosts: server::hosts(address) };
        let background = Arc::new(Background::default());
        let actions = Arc::new(LocalActions::new(Arc::clone(&background), prepare_template));
        let (shutdown, is_shut_down) = oneshot::channel();
        let events = channel();
        watch_signals(&runtime, &events.0)?;
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            let shutdown = async {
                // An error means that the sender was dropped: the server ends, too.
                let _ = is_shut_down.await;
            };
            runtime.block_on(async {
                server::serve(listener, identity, actions, shutdown).await;
                // Signals are handled until the work is finished.
                let finished = tokio::task::spawn_blocking(move || background.wait()).await;
                finished.unwrap_or_else(|error| log::error!("cannot finish the work of requests: {error}"));
            });
        });
        let thread = thread.context("cannot start the server's thread")?;
        Ok(Server { endpoint: format!("http://{address}"), shutdown, thread, events })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn wait_for_signal(&self) {
        // Cannot fail: this server has a sender.
        let _ = self.events.1.recv();
    }

    /// Runs a command, and passes SIGTERM on to it. The terminal sends SIGINT to both.
    pub fn run_command(&self, mut command: Command) -> std::io::Result<ExitStatus> {
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let ended = self.events.0.clone();
        std::thread::spawn(move || ended.send(Event::Ended(child.wait())));
        loop {
            match self.events.1.recv() {
                Ok(Event::Ended(status)) => return status,
                // An error means that the command has just ended.
                Ok(Event::Signal(Signal::TERM)) => drop(kill_process(pid, Signal::TERM)),
                Ok(Event::Signal(_)) => {}
                Err(error) => return Err(std::io::Error::other(error)),
            }
        }
    }

    /// Finishes the requests in flight and the work that they have begun. A signal ends this process at once: the next
    /// command finishes the work.
    pub fn stop(self) {
        let events = self.events.1;
        std::thread::spawn(move || {
            if let Ok(Event::Signal(_)) = events.recv() {
                exit(INTERRUPTED);
            }
        });
        // An error means that the server's thread has ended.
        let _ = self.shutdown.send(());
        if self.thread.join().is_err() {
            log::error!("the server's thread panicked");
        }
    }
}

fn prepare_template(image: &str, size: &InstanceSize) {
    template::prepare_in_background(Some(image), size);
}

fn watch_signals(runtime: &Runtime, events: &Sender<Event>) -> anyhow::Result<()> {
    for (kind, number) in [(SignalKind::interrupt(), Signal::INT), (SignalKind::terminate(), Signal::TERM)] {
        let _context = runtime.enter();
        let mut signals = signal(kind).context("cannot handle signals")?;
        let events = events.clone();
        runtime.spawn(
            async move { while signals.recv().await.is_some() && events.send(Event::Signal(number)).is_ok() {} },
        );
    }
    Ok(())
}
