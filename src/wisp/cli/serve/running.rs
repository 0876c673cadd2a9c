//! A running server: its thread, and how it ends.

use std::net::SocketAddr;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
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
    background: Arc<Background>,
    shutdown: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    /// Receives a message at SIGINT and SIGTERM.
    signaled: std::sync::mpsc::Receiver<()>,
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
        let (report, signaled) = std::sync::mpsc::channel();
        watch_signals(&runtime, report)?;
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            let shutdown = async {
                // An error means that the sender was dropped: the server ends, too.
                let _ = is_shut_down.await;
            };
            runtime.block_on(server::serve(listener, identity, actions, shutdown));
        });
        let thread = thread.context("cannot start the server's thread")?;
        Ok(Server { endpoint: format!("http://{address}"), background, shutdown, thread, signaled })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn wait_for_signal(&self) {
        // An error means that the server's thread has ended.
        let _ = self.signaled.recv();
    }

    /// Runs a command, and passes SIGTERM on to it.
    pub fn run_command(&self, mut command: Command) -> std::io::Result<ExitStatus> {
        command.spawn()?.wait()
    }

    /// Finishes the requests in flight and the work that they have begun.
    pub fn stop(self) {
        // An error means that the server's thread has ended.
        let _ = self.shutdown.send(());
        if self.thread.join().is_err() {
            log::error!("the server's thread panicked");
        }
        self.background.wait();
    }
}

fn prepare_template(image: &str, size: &InstanceSize) {
    template::prepare_in_background(Some(image), size);
}

fn watch_signals(runtime: &Runtime, report: std::sync::mpsc::Sender<()>) -> anyhow::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let _context = runtime.enter();
        let mut signals = signal(kind).context("cannot handle signals")?;
        let report = report.clone();
        runtime.spawn(async move { while signals.recv().await.is_some() && report.send(()).is_ok() {} });
    }
    Ok(())
}
