//! The thread that starts the machine's others.
//!
//! A thread has the filter of who starts it, and its own besides. Devices' threads are started when the guest's driver sets
//! its device up, which happens on a vCPU's thread: without this one, a vCPU could do all that devices can, and start
//! threads. It does what it is asked in order, and has nothing of the guest's.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::{Builder, JoinHandle};

use super::calls::Kind;
use super::seccomp;

/// Stacks are small: nothing recurses, and buffers are not on them.
const STACK: usize = 256 << 10;

type Job = Box<dyn FnOnce() + Send>;

static STARTER: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts the thread that starts others; once for a process, before it has filters.
pub fn begin() -> io::Result<()> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let (started, is_started) = mpsc::sync_channel(1);
    Builder::new().name("starter".into()).stack_size(STACK).spawn(move || serve(&jobs, &started))?;
    is_started.recv().map_err(|_| gone())??;
    STARTER.set(sender).map_err(|_| io::Error::other("threads are started by a thread already"))
}

fn serve(jobs: &mpsc::Receiver<Job>, started: &SyncSender<io::Result<()>>) {
    let entered = seccomp::enter(Kind::Starter);
    let is_entered = entered.is_ok();
    // Who waits for it is there.
    let _ = started.send(entered);
    if is_entered {
        jobs.iter().for_each(|job| job());
    }
}

/// Starts a thread of this kind, which gets its filter before it does anything.
pub fn spawn<T: Send + 'static>(
    name: String,
    kind: Kind,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let start = move || {
        let filtered = move || {
            if let Err(error) = seccomp::enter(kind) {
                log::error!("{} gets no filter, and the monitor ends: {error}", kind.as_str());
                std::process::exit(seccomp::VIOLATION);
            }
            run()
        };
        Builder::new().name(name).stack_size(STACK).spawn(filtered)
    };
    let Some(starter) = STARTER.get() else { return start() };
    let (answer, thread) = mpsc::sync_channel(1);
    // Whoever asked waits for the answer.
    starter.send(Box::new(move || drop(answer.send(start())))).map_err(|_| gone())?;
    thread.recv().map_err(|_| gone())?
}

fn gone() -> io::Error {
    io::Error::other("the thread that starts others is gone")
}
