//! An io_uring (io_uring(7)) that reads and syncs files, and can do nothing else.
//!
//! What a ring does passes by the thread's filter of system calls. So it is restricted, for good and before it is enabled:
//! to reads into buffers and to `fsync`, without flags; nothing can be registered with it, and nothing about it be changed.
//! It is made before the process gives up locked memory, for which newer kernels take its two pages, and `io_uring_setup`.
//! Files are not registered either: a ring gives those up some time after its process has ended, and a disk's lock would be
//! held for that long.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};

/// How much can be in flight at a time.
pub(super) const DEPTH: usize = 64;

/// Threads that the kernel may start for one disk: for a flush, and for reads on file systems that cannot do them without.
pub const KERNEL_THREADS: u32 = 4;

/// The ring, and how much is in flight.
pub struct Ring {
    ring: IoUring,
    in_flight: usize,
}

impl Ring {
    /// One with nothing in flight; none where the host does not let this process have one, which is logged once.
    pub fn new() -> Option<Ring> {
        static SAID: Once = Once::new();
        let refused = |error| {
            SAID.call_once(|| log::info!("disks serve one request at a time: the host gives no io_uring: {error}"));
        };
        Ring::try_new().map_err(refused).ok()
    }

    fn try_new() -> io::Result<Ring> {
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(DEPTH as u32)?;
        // Kernels before 5.15 do not let it be said, and have few of their own accord.
        let _ = ring.submitter().register_iowq_max_workers(&mut [KERNEL_THREADS - 1, 1]);
        let mut only = [Restriction::sqe_op(opcode::Readv::CODE), Restriction::sqe_op(opcode::Fsync::CODE)];
        ring.submitter().register_restrictions(&mut only)?;
        ring.submitter().register_enable_rings()?;
        Ok(Ring { ring, in_flight: 0 })
    }

    /// What is begun and not taken from `completed`.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How much more can be begun.
    pub(super) fn room(&self) -> usize {
        DEPTH - self.in_flight
    }

    /// Has a read begin with the next `submit`. There must be room.
    ///
    /// # Safety
    /// `buffers` and what they point to stay where they are, and nobody has references into the latter, until the read is
    /// completed.
    pub(super) unsafe fn read(&mut self, fd: RawFd, buffers: &[libc::iovec], offset: u64, token: u64) {
        let read = opcode::Readv::new(types::Fd(fd), buffers.as_ptr(), buffers.len() as u32).offset(offset);
        // SAFETY: by this function's contract.
        unsafe { self.push(read.build().user_data(token)) }
    }

    /// The same with writing out what was written to a file so far.
    pub(super) fn sync(&mut self, fd: RawFd, token: u64) {
        // SAFETY: it has no buffers.
        unsafe { self.push(opcode::Fsync::new(types::Fd(fd)).build().user_data(token)) }
    }

    /// # Safety
    /// The buffers of `entry` stay as they are until it is completed.
    unsafe fn push(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: by this function's contract.
        unsafe { self.ring.submission().push(&entry) }.expect("there is room for what is not in flight");
        self.in_flight += 1;
    }

    /// Begins what was put in.
    pub(super) fn submit(&mut self) {
        while !self.ring.submission().is_empty() {
            self.enter(0);
        }
    }

    /// The same; returns when something is completed.
    pub(super) fn wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, at_least: usize) {
        match self.ring.submit_and_wait(at_least).map_err(|error| error.raw_os_error()) {
            // Signals; and a host that is short of memory, which has to be waited for: the buffers are given away.
            Ok(_) | Err(Some(libc::EINTR)) => {}
            Err(Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => std::thread::yield_now(),
            Err(error) => panic!("a ring that is set up takes what it is restricted to: error {error:?}"),
        }
    }

    /// The token of something that is completed, and its result: as a system call's, or minus an error.
    pub(super) fn completed(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data(), entry.result()))
    }
}

impl AsRawFd for Ring {
    /// Readable when something is completed.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of `entry` in a ring.
    fn result(entry: io_uring::squeue::Entry) -> Option<i32> {
        let Some(mut ring) = Ring::new() else {
            eprintln!("not tested: this host has no io_uring");
            return None;
        };
        // SAFETY: the entries of these tests have no buffers that go away, and are not carried out.
        unsafe { ring.push(entry) };
        ring.wait();
        ring.completed().map(|(_, result)| result)
    }

    #[test]
    fn a_ring_does_nothing_but_read_and_sync() {
        let file = tempfile::tempfile().unwrap();
        let fd = types::Fd(file.as_raw_fd());
        let bytes = [7_u8; 8];
        let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let path = c"/etc/passwd";
        let others = [
            opcode::Writev::new(fd, &raw const vector, 1).build(),
            opcode::Write::new(fd, bytes.as_ptr(), 8).build(),
            opcode::Read::new(fd, bytes.as_ptr().cast_mut(), 8).build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Nop::new().build(),
            opcode::Fsync::new(fd).build().flags(io_uring::squeue::Flags::ASYNC),
        ];
        for entry in others {
            let code = format!("{entry:?}");
            let result = result(entry);
            assert!(result.is_none_or(|result| result == -libc::EACCES), "{code}: {result:?}");
        }
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(result(opcode::Fsync::new(fd).build()).is_none_or(|result| result == 0));
    }

    #[test]
    fn nothing_can_be_registered_with_a_ring() {
        let Some(ring) = Ring::new() else { return eprintln!("not tested: this host has no io_uring") };
        let submitter = ring.ring.submitter();
        let refused = [
            submitter.register_files(&[0]).unwrap_err(),
            submitter.register_restrictions(&mut [Restriction::sqe_op(opcode::Nop::CODE)]).unwrap_err(),
            submitter.register_enable_rings().unwrap_err(),
        ];
        assert!(
            refused.iter().all(|error| matches!(error.raw_os_error(), Some(libc::EACCES | libc::EBADFD))),
            "{refused:?}"
        );
    }

    #[test]
    fn where_io_uring_is_forbidden_there_is_no_ring() {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
        let rules = [(libc::SYS_io_uring_setup, vec![])].into();
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64).unwrap();
        let forbidden = move || {
            apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
            Ring::new().is_none()
        };
        // The filter is this thread's, and ends with it.
        assert!(std::thread::spawn(forbidden).join().unwrap());
    }
}
