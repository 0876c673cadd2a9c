//! Waits for processes and files: every wait blocks in the kernel until an event or [`DEADLINE`].

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::DEADLINE;

/// Returns true if `event` becomes readable before `deadline`.
fn is_readable_before(event: &OwnedFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&left)).is_ok_and(|count| count > 0)
}

/// Waits until a process has ended (or is a zombie). Returns false if it is still running at `deadline`.
pub fn has_ended_before(pid: i32, deadline: Instant) -> bool {
    let Ok(process) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return true };
    is_readable_before(&process, deadline)
}

/// Waits until a process has ended (or is a zombie).
pub fn wait_until_gone(pid: u32) {
    assert!(has_ended_before(pid.try_into().unwrap(), Instant::now() + DEADLINE), "process {pid} is still running");
}

/// Waits until `find` returns no more processes. It must not return zombies, whose end cannot be awaited.
pub fn await_end_of(what: &str, find: impl Fn() -> Vec<i32>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = find();
        if left.is_empty() {
            return;
        }
        let commands: Vec<_> = left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline"))).collect();
        let have_ended = left.iter().all(|pid| has_ended_before(*pid, deadline));
        assert!(have_ended && Instant::now() < deadline, "{what} is still running: {commands:?}");
    }
}

/// The process IDs in `/proc`.
pub fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Changes of files or directories (inotify(7)).
pub struct Changes {
    watch: OwnedFd,
    deadline: Instant,
}

impl Changes {
    pub fn new() -> Changes {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        Changes { watch, deadline: Instant::now() + DEADLINE }
    }

    /// Watches a file or directory. Fails if it does not exist.
    pub fn add(&self, path: &Path, kinds: WatchFlags) -> rustix::io::Result<()> {
        inotify::add_watch(&self.watch, path, kinds).map(drop)
    }

    /// Waits for a change since the last call. Returns false if there is none until the deadline.
    pub fn has_next(&self) -> bool {
        let has_next = is_readable_before(&self.watch, self.deadline);
        while rustix::io::read(&self.watch, &mut [0; 4096]).is_ok_and(|count| count > 0) {}
        has_next
    }
}

/// Waits until `path` exists. Its parent directories may appear meanwhile.
#[track_caller]
pub fn wait_for_path(path: &Path) {
    let changes = Changes::new();
    let kinds = WatchFlags::CREATE | WatchFlags::MOVED_TO;
    loop {
        // The deepest parent that exists, and the entry in it that leads to `path`.
        let levels = path.ancestors().zip(path.ancestors().skip(1));
        let watched = levels.into_iter().find(|(_, parent)| changes.add(parent, kinds).is_ok());
        let (entry, _) = watched.expect("the root directory exists");
        match entry.symlink_metadata() {
            Ok(_) if entry == path => return,
            Ok(_) => {}
            Err(_) => assert!(changes.has_next(), "{} does not exist", path.display()),
        }
    }
}

/// Waits until the text of a file contains `text`.
#[track_caller]
pub fn wait_for_text(path: &Path, text: &str) {
    let changes = Changes::new();
    changes.add(path, WatchFlags::MODIFY).unwrap();
    loop {
        let content = fs::read_to_string(path).unwrap();
        if content.contains(text) {
            return;
        }
        assert!(changes.has_next(), "{text:?} is not in {}: {content}", path.display());
    }
}
