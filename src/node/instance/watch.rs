//! Waits for an instance's VMM. A wait ends early if no VMM can start anymore.
//!
//! A VMM that starts to listen renames its control socket to its final name, which inotify reports. The supervisor
//! holds the instance's lock even while the guest reboots. A thread waits for that lock, so the wait also ends when the
//! VMM and its supervisor have died.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::dir::InstanceDir;
use super::error::{Failure, MachineError};
use super::handle::MachineHandle;
use crate::home::lock_file;
use machine::control::SOCKET;
use machine::files::{LOCK, make_vmm_directory};

#[derive(Debug)]
pub enum Awaited {
    Listening(Box<MachineHandle>),
    /// No process runs the instance. None can start until the lock is dropped.
    Ended(File),
    TimedOut,
}

/// Watches for a VMM that starts to listen, and for the release of the instance's lock.
#[derive(Debug)]
struct VmmWatch<'a> {
    dir: &'a InstanceDir,
    sockets: OwnedFd,
    released: Arc<OwnedFd>,
    lock: Receiver<io::Result<File>>,
}

impl<'a> VmmWatch<'a> {
    fn new(dir: &'a InstanceDir) -> Result<VmmWatch<'a>, MachineError> {
        let failed = |errno: Errno| MachineError::file(dir.path(), "watch")(errno.into());
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let sockets = inotify::init(flags).map_err(failed)?;
        // The supervisor normally creates the directory, but another command may be about to start it.
        make_vmm_directory(dir.path()).map_err(MachineError::file(dir.path(), "watch"))?;
        inotify::add_watch(&sockets, dir.vmm_directory(), inotify::WatchFlags::MOVED_TO).map_err(failed)?;
        let released = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(failed)?);
        let (sender, lock) = mpsc::channel();
        let (path, signal) = (dir.path().join(LOCK), Arc::clone(&released));
        let wait = move || {
            // A lock acquired after the watch was dropped is released at once.
            if sender.send(lock_file(&path)).is_ok() {
                // The counter cannot overflow: this is its only write.
                let _ = rustix::io::write(&*signal, &1_u64.to_ne_bytes());
            }
        };
        let thread = std::thread::Builder::new().name("instance-lock".into());
        thread.spawn(wait).map_err(MachineError::file(dir.path(), "watch"))?;
        Ok(VmmWatch { dir, sockets, released, lock })
    }

    fn wait(&self, deadline: Instant) -> Result<Awaited, MachineError> {
        let path = self.dir.path();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.sockets, PollFlags::IN), PollFd::new(&*self.released, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(Awaited::TimedOut),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(MachineError::file(path, "watch")(error.into())),
            }
            if !fds[1].revents().is_empty() {
                let lock = self.lock.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
                return lock.map(Awaited::Ended).map_err(MachineError::file(path, "lock"));
            }
            if self.has_new_socket()
                && let Some(machine) = self.dir.connect_if_listening()?
            {
                return Ok(Awaited::Listening(Box::new(machine)));
            }
        }
    }

    /// Reads all pending events. Returns true if one of them is a new control socket.
    fn has_new_socket(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.sockets, &mut buffer);
        let mut is_new = false;
        while let Ok(event) = events.next() {
            is_new |= event.file_name().is_some_and(|name| name.to_bytes() == SOCKET.as_bytes());
        }
        is_new
    }
}

impl InstanceDir {
    /// Waits until the instance's VMM listens, or the instance has ended. A guest that reboots gets a new VMM.
    pub fn await_vmm(&self, timeout: Duration) -> Result<Awaited, MachineError> {
        let deadline = Instant::now() + timeout;
        if let Some(machine) = self.connect_if_listening()? {
            return Ok(Awaited::Listening(Box::new(machine)));
        }
        let watch = VmmWatch::new(self)?;
        // Try again, because the watch does not report a VMM that started to listen before the watch existed.
        match self.connect_if_listening()? {
            Some(machine) => Ok(Awaited::Listening(Box::new(machine))),
            None => watch.wait(deadline),
        }
    }

    /// Calls `request`, which reboots the guest. Waits until the next VMM listens or the instance has ended.
    pub fn reboot_by(
        &self,
        timeout: Duration,
        request: impl FnOnce() -> Result<(), MachineError>,
    ) -> Result<Awaited, MachineError> {
        let deadline = Instant::now() + timeout;
        let watch = VmmWatch::new(self)?;
        request()?;
        watch.wait(deadline)
    }

    fn connect_if_listening(&self) -> Result<Option<MachineHandle>, MachineError> {
        match MachineHandle::connect(self) {
            Ok(machine) => Ok(Some(machine)),
            Err(MachineError { failure: Failure::Control(source), .. }) if source.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::home::Home;
    use ec2::InstanceId;

    /// Longer than any wait in these tests. A wait that misses its event takes this long.
    const PATIENCE: Duration = Duration::from_secs(600);

    struct Instance {
        _directory: tempfile::TempDir,
        dir: InstanceDir,
    }

    fn instance() -> Instance {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path()).unwrap();
        let dir = InstanceDir::of(&home, InstanceId::from_random([7; 9]));
        dir.create().unwrap();
        Instance { _directory: directory, dir }
    }

    /// Binds a control socket as a VMM does.
    fn listen(dir: &InstanceDir) -> UnixListener {
        make_vmm_directory(dir.path()).unwrap();
        let socket = dir.vmm_directory().join(SOCKET);
        let new = socket.with_extension("new");
        let listener = UnixListener::bind(&new).unwrap();
        std::fs::rename(new, socket).unwrap();
        listener
    }

    /// Makes a VMM accept one connection, read a request from it, and end.
    fn end_at_first_request(listener: UnixListener) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        })
    }

    #[test]
    fn reboot_returns_ended_when_lock_is_released() {
        let Instance { dir, _directory } = instance();
        let lock = dir.try_lock().unwrap().unwrap();
        let began = Instant::now();
        let awaited = dir.reboot_by(PATIENCE, || {
            drop(lock);
            Ok(())
        });
        assert!(matches!(awaited.unwrap(), Awaited::Ended(_)));
        assert!(began.elapsed() < PATIENCE);
    }

    #[test]
    fn reboot_ends_when_next_vmm_listens() {
        let Instance { dir, _directory } = instance();
        let _lock = dir.try_lock().unwrap().unwrap();
        let mut listener = None;
        let awaited = dir.reboot_by(PATIENCE, || {
            // Other files moved into the directory are not VMMs.
            let path = |name: &str| dir.vmm_directory().join(name);
            for name in ["a", "b"] {
                std::fs::write(path(name), "").unwrap();
                std::fs::rename(path(name), path(&format!("{name}.new"))).unwrap();
            }
            listener = Some(listen(&dir));
            Ok(())
        });
        assert!(matches!(awaited.unwrap(), Awaited::Listening(_)));
    }

    #[test]
    fn reboot_without_new_vmm_times_out() {
        let Instance { dir, _directory } = instance();
        let _lock = dir.try_lock().unwrap().unwrap();
        let awaited = dir.reboot_by(Duration::from_millis(10), || Ok(()));
        assert!(matches!(awaited.unwrap(), Awaited::TimedOut));
    }

    #[test]
    fn socket_of_dead_vmm_is_ignored() {
        let Instance { dir, _directory } = instance();
        let lock = dir.try_lock().unwrap().unwrap();
        drop(listen(&dir));
        assert!(matches!(dir.await_vmm(Duration::from_millis(10)).unwrap(), Awaited::TimedOut));
        drop(lock);
        assert!(matches!(dir.await_vmm(PATIENCE).unwrap(), Awaited::Ended(_)));
        let _listener = listen(&dir);
        assert!(matches!(dir.await_vmm(PATIENCE).unwrap(), Awaited::Listening(_)));
    }

    #[test]
    fn wait_ready_fails_when_vmm_was_killed() {
        let Instance { dir, _directory } = instance();
        let vmm = end_at_first_request(listen(&dir));
        let mut machine = MachineHandle::connect(&dir).unwrap();
        let subscribed = machine.subscribe();
        assert!(subscribed.as_ref().is_err_and(MachineError::is_lost_vmm), "{subscribed:?}");
        vmm.join().unwrap();
        let ready = machine.wait_ready(PATIENCE);
        assert!(matches!(ready, Err(MachineError { failure: Failure::EndedEarly { .. }, .. })), "{ready:?}");
    }

    #[test]
    fn hibernate_fails_when_vmm_was_killed() {
        let Instance { dir, _directory } = instance();
        let vmm = end_at_first_request(listen(&dir));
        let mut machine = MachineHandle::connect(&dir).unwrap();
        let hibernated = dir.hibernate(&mut machine);
        vmm.join().unwrap();
        assert!(matches!(hibernated, Err(MachineError { failure: Failure::NotDone(_), .. })), "{hibernated:?}");
    }

    #[test]
    fn lock_acquired_after_timeout_is_released() {
        let Instance { dir, _directory } = instance();
        let path = dir.path().canonicalize().unwrap().join(LOCK);
        let is_lock = |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|target| target == path);
        let wait_until_open = |count: usize| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter(is_lock).count() != count {
                assert!(Instant::now() < deadline, "the lock is not open {count} times");
                std::thread::yield_now();
            }
        };
        let lock = dir.try_lock().unwrap().unwrap();
        assert!(matches!(dir.await_vmm(Duration::ZERO).unwrap(), Awaited::TimedOut));
        // Now the watch's thread waits for the lock.
        wait_until_open(2);
        drop(lock);
        // The thread acquires the lock, and releases it.
        wait_until_open(0);
        drop(lock_file(&path).unwrap());
    }
}
