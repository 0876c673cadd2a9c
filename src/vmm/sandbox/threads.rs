//! The starter: the thread that starts the machine's other threads.
//!
//! A new thread inherits its parent's filter. Without the starter, vCPU threads would start device threads, so their
//! filter would have to allow the calls of all devices and the creation of threads. The starter handles no guest data.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{Builder, JoinHandle};

use super::calls::ThreadKind;
use super::seccomp;

/// Stacks are small, because there is no recursion and buffers are not on the stack.
const STACK: usize = 256 << 10;
/// Opening a disk image takes more stack than serving its requests.
const JOB_STACK: usize = 2 << 20;

type Start = Box<dyn FnOnce() + Send>;

static STARTER: OnceLock<Sender<Start>> = OnceLock::new();

/// The starter thread while it installs its filter.
#[derive(Debug)]
#[must_use]
pub struct PendingStarter {
    starter: Sender<Start>,
    entered: Receiver<io::Result<()>>,
}

/// Starts the starter thread. Must be called once, before the calling thread has filters.
pub fn begin() -> io::Result<PendingStarter> {
    let (starter, starts) = mpsc::channel::<Start>();
    let (sender, entered) = mpsc::sync_channel(1);
    Builder::new().name("starter".into()).stack_size(STACK).spawn(move || serve(&starts, &sender))?;
    Ok(PendingStarter { starter, entered })
}

impl PendingStarter {
    /// Waits until the starter has its filter. From then on, it starts all threads.
    pub fn finish(self) -> io::Result<()> {
        self.entered.recv().map_err(|_| gone())??;
        STARTER.set(self.starter).map_err(|_| io::Error::other("the starter thread already exists"))
    }
}

fn serve(starts: &Receiver<Start>, entered: &SyncSender<io::Result<()>>) {
    let result = seccomp::enter(ThreadKind::Starter);
    let is_entered = result.is_ok();
    if is_entered {
        // The machine is being built meanwhile. Later, the threads would compile their filters while it waits for them.
        seccomp::compile_start_up_filters();
    }
    let _ = entered.send(result);
    if is_entered {
        starts.iter().for_each(|start| start());
    }
}

/// Starts a thread, through the starter if there is one. The thread installs its filter before it calls `run`.
pub fn spawn<T: Send + 'static>(
    name: String,
    kind: ThreadKind,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let start = move || {
        let filtered = move || {
            if let Err(error) = seccomp::enter(kind) {
                log::error!("the VMM exits: cannot install the seccomp filter of {}: {error}", kind.as_str());
                std::process::exit(machine::sandbox_record::SECCOMP_EXIT_CODE);
            }
            run()
        };
        let stack = if kind == ThreadKind::Job { JOB_STACK } else { STACK };
        Builder::new().name(name).stack_size(stack).spawn(filtered)
    };
    let Some(starter) = STARTER.get() else { return start() };
    let (answer, thread) = mpsc::sync_channel(1);
    starter.send(Box::new(move || drop(answer.send(start())))).map_err(|_| gone())?;
    thread.recv().map_err(|_| gone())?
}

fn gone() -> io::Error {
    io::Error::other("the starter thread exited")
}
