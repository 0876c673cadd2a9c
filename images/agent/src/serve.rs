//! The main thread's loop: accepts connections, starts a thread for each, and acts on signals.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
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
        if ready[2].read {
            let has_seed = sentinel.as_ref().is_some_and(|sentinel| sentinel.resume(agent));
            sentinel = Sentinel::connect();
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

fn take_connection(agent: &'static Agent, listener: &Listener) -> std::io::Result<()> {
    let Some(socket) = listener.accept()? else { return Ok(()) };
    if SESSIONS.load(Ordering::Relaxed) >= MAX_SESSIONS {
        eprintln!("wisp-init: refused a connection: already serving {MAX_SESSIONS} connections");
        return Ok(());
    }
    SESSIONS.fetch_add(1, Ordering::Relaxed);
    let session = thread::Builder::new().name("session".into()).stack_size(STACK_BYTES).spawn(move || {
        match agent.serve(socket) {
            // The host may disconnect at any time.
            Ok(()) | Err(ProtocolError::Closed | ProtocolError::Truncated | ProtocolError::Io(_)) => {}
            Err(error) => eprintln!("wisp-init: closed a connection: {error}"),
        }
        SESSIONS.fetch_sub(1, Ordering::Relaxed);
    });
    if session.is_err() {
        SESSIONS.fetch_sub(1, Ordering::Relaxed);
    }
    session.map(drop)
}
