//! The main thread's loop: accepts connections, passes each to a thread of its own, and acts on signals.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use wisp_agent::agent::{Agent, Listener, Sentinel};
use wisp_agent::poll::{Interest, poll};
use wisp_agent::protocol::ProtocolError;

use crate::signals::Signals;

/// Maximum number of concurrent connections. Each may use a thread and several descriptors.
const MAX_SESSIONS: usize = 64;

/// Stack size of a session, enough for a tree of the maximum depth. Untouched pages cost nothing.
const STACK_BYTES: usize = 512 * 1024;

/// Time to ignore the listener after a failed accept, for example for lack of descriptors or memory.
const RECOVERY: Duration = Duration::from_secs(1);

/// Serves until a signal stops the guest, and returns the exit code. Both the listener and the signals are optional.
pub fn run(agent: &'static Agent, listener: Option<&Listener>, signals: Option<&mut Signals>) -> libc::c_int {
    // Writing to a command that has closed its input must fail, not kill the agent.
    // SAFETY: the call accepts this disposition, and no handler is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut signals = signals;
    let mut recovering = false;
    let mut sentinel = Sentinel::connect();
    loop {
        let slots = [
            listener.filter(|_| !recovering).map(|listener| (listener.as_fd(), Interest::Read)),
            signals.as_ref().map(|signals| (signals.as_fd(), Interest::Read)),
            sentinel.as_ref().map(|sentinel| (sentinel.as_fd(), Interest::Read)),
        ];
        let ready = match poll(slots, recovering.then_some(RECOVERY)) {
            Ok(ready) => ready,
            Err(error) => {
                eprintln!("wisp-init: poll failed: {error}");
                return 1;
            }
        };
        recovering = false;
        if ready[2].read
            && let Some(broken) = sentinel.take()
        {
            let has_seed = broken.resume(agent);
            sentinel = broken.reconnect();
            if has_seed {
                let _ = thread::Builder::new().name("seed".into()).spawn(|| agent.apply_seed());
            }
        }
        if ready[1].read
            && let Some(signals) = signals.as_deref_mut()
            && let ControlFlow::Break(()) = signals.act(agent)
        {
            return 0;
        }
        if ready[0].read
            && let Some(listener) = listener
        {
            recovering = take_connection(agent, listener).is_err();
        }
    }
}

static SESSIONS: AtomicUsize = AtomicUsize::new(0);

/// Connections for the idle session thread. A send succeeds only while that thread waits.
static IDLE: LazyLock<(SyncSender<OwnedFd>, Mutex<Receiver<OwnedFd>>)> = LazyLock::new(|| {
    let (sender, receiver) = sync_channel(0);
    (sender, Mutex::new(receiver))
});

fn take_connection(agent: &'static Agent, listener: &Listener) -> std::io::Result<()> {
    let Some(socket) = listener.accept()? else { return Ok(()) };
    if SESSIONS.load(Ordering::Relaxed) >= MAX_SESSIONS {
        eprintln!("wisp-init: refused a connection: already serving {MAX_SESSIONS} connections");
        return Ok(());
    }
    SESSIONS.fetch_add(1, Ordering::Relaxed);
    let Err(TrySendError::Full(socket) | TrySendError::Disconnected(socket)) = IDLE.0.try_send(socket) else {
        return Ok(());
    };
    let session = thread::Builder::new().name("session".into()).stack_size(STACK_BYTES).spawn(move || {
        serve(agent, socket);
        serve_idle(agent);
    });
    if session.is_err() {
        SESSIONS.fetch_sub(1, Ordering::Relaxed);
    }
    session.map(drop)
}

fn serve(agent: &Agent, socket: OwnedFd) {
    match agent.serve(socket) {
        // The host may disconnect at any time.
        Ok(()) | Err(ProtocolError::Closed | ProtocolError::Truncated | ProtocolError::Io(_)) => {}
        Err(error) => eprintln!("wisp-init: closed a connection: {error}"),
    }
    SESSIONS.fetch_sub(1, Ordering::Relaxed);
}

/// Serves further connections, unless another thread already waits for them. Under software KVM, a new thread costs
/// ten milliseconds.
fn serve_idle(agent: &Agent) {
    let (_, connections) = &*IDLE;
    loop {
        let Ok(connections) = connections.try_lock() else { return };
        let Ok(socket) = connections.recv() else { return };
        drop(connections);
        serve(agent, socket);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use wisp_agent::protocol::{AgentConnection, ToGuest, ToHost};

    use super::*;

    #[test]
    fn idle_thread_serves_several_connections() {
        let agent: &'static Agent = Box::leak(Box::new(Agent::new(false)));
        thread::spawn(|| serve_idle(agent));
        for _ in 0..3 {
            let (host, guest) = UnixStream::pair().expect("a socket pair");
            SESSIONS.fetch_add(1, Ordering::Relaxed);
            // Unlike `take_connection`, wait until the thread is idle.
            IDLE.0.send(guest.into()).expect("the thread waits");
            let mut connection = AgentConnection::new(host.into());
            connection.begin(&ToGuest::Ping).expect("greeted");
            let answer = connection.reader.receive::<ToHost<'_>>().expect("answered");
            assert!(matches!(answer, ToHost::Pong(_)), "{answer:?}");
        }
    }
}
