//! Reconciliation with many running instances, which each command does first.

use std::time::{Duration, Instant};

use super::host::FakeNode;
use super::reference::Fault;
use super::system::launch_spec;
use crate::{Cloud, Warnings};
use ec2::state::ShutdownBehavior;
use node::home::Home;

/// More calls than a reconciliation makes.
const CALLS: u32 = 10_000;
const RUNS: usize = 101;

/// A data directory with running instances.
struct Running {
    home: Home,
    node: FakeNode,
    _dir: tempfile::TempDir,
}

impl Running {
    fn new(count: u32) -> Running {
        let dir = tempfile::tempdir().expect("a directory");
        let running =
            Running { home: Home::at(dir.path()).expect("a data directory"), node: FakeNode::default(), _dir: dir };
        let spec = launch_spec(count, None, true, ShutdownBehavior::Stop, false);
        let launched = running.open().instances().launch(&spec).expect("the host has room").value;
        assert_eq!(launched.instances.len(), count as usize);
        running
    }

    fn open(&self) -> Cloud {
        Cloud::with_node(self.home.clone(), Box::new(self.node.clone())).expect("the store can be opened")
    }

    /// Returns the number of calls to the host in a reconciliation, which must change nothing.
    fn calls(&self) -> u32 {
        let cloud = self.open();
        let before = cloud.store.generation().expect("the store can be read");
        self.node.host().fault = Some((CALLS, Fault::Failed));
        assert_eq!(cloud.instances().reconcile(), Warnings::default());
        let (left, _) = self.node.host().fault.take().expect("there are fewer calls");
        assert_eq!(cloud.store.generation().expect("the store can be read"), before);
        CALLS - left
    }
}

#[test]
fn reconcile_calls_host_once_for_each_running_instance() {
    let [few, many] = [1, 50].map(|count| Running::new(count).calls());
    assert_eq!(many - few, 49);
}

#[test]
#[ignore = "prints the time of a reconciliation"]
fn reconcile_time() {
    for count in [1, 50] {
        let running = Running::new(count);
        let mut times: Vec<Duration> = (0..RUNS).map(|_| time(&running)).collect();
        times.sort();
        println!("{count} running instances with 2 volumes each: {:?} (median of {RUNS})", times[RUNS / 2]);
    }
}

/// Returns the time of a reconciliation in a new process, which has an empty page cache of SQLite.
fn time(running: &Running) -> Duration {
    let cloud = running.open();
    let began = Instant::now();
    assert_eq!(cloud.instances().reconcile(), Warnings::default());
    began.elapsed()
}
