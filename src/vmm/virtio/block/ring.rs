//! An io_uring that can only read and sync files (io_uring(7)).
//!
//! io_uring operations bypass the thread's seccomp filter. The ring is therefore restricted permanently to vectored
//! reads and `fsync`, without submission flags. Nothing more can be registered with it.
//!
//! The ring must be created before the sandbox denies `io_uring_setup` and locked memory. Newer kernels count two of a
//! ring's pages as locked. Files are not registered, because the kernel would release them, and a disk's lock, only
//! after the process has exited.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};
use machine::config::DISK_KERNEL_THREADS;

/// Maximum number of operations in flight.
pub(super) const DEPTH: usize = 64;

pub struct Ring {
    ring: IoUring,
    in_flight: usize,
}

impl Ring {
    /// Returns `None` if the host does not allow a ring, and logs the reason once.
    pub fn new() -> Option<Ring> {
        static SAID: Once = Once::new();
        let refused = |error| {
            SAID.call_once(|| log::info!("disks serve one request at a time: io_uring is not available: {error}"));
        };
        Ring::try_new().map_err(refused).ok()
    }

    fn try_new() -> io::Result<Ring> {
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(DEPTH as u32)?;
        // Kernels before 5.15 do not support this limit, and start few threads anyway.
        let _ = ring.submitter().register_iowq_max_workers(&mut [DISK_KERNEL_THREADS - 1, 1]);
        let mut only = [Restriction::sqe_op(opcode::Readv::CODE), Restriction::sqe_op(opcode::Fsync::CODE)];
        ring.submitter().register_restrictions(&mut only)?;
        ring.submitter().register_enable_rings()?;
        Ok(Ring { ring, in_flight: 0 })
    }

    /// Returns the number of operations whose completion has not been removed with `completed`.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn room(&self) -> usize {
        DEPTH - self.in_flight
    }

    /// Queues a read for the next `submit`. There must be room.
    ///
    /// # Safety
    /// `buffers` and their memory must stay in place until the read completes, and no references into it may exist.
    pub(super) unsafe fn read(&mut self, fd: RawFd, buffers: &[libc::iovec], offset: u64, token: u64) {
        let read = opcode::Readv::new(types::Fd(fd), buffers.as_ptr(), buffers.len() as u32).offset(offset);
        // SAFETY: by this function's contract.
        unsafe { self.push(read.build().user_data(token)) }
    }

    /// Queues an `fsync` for the next `submit`. There must be room.
    pub(super) fn sync(&mut self, fd: RawFd, token: u64) {
        // SAFETY: the operation has no buffers.
        unsafe { self.push(opcode::Fsync::new(types::Fd(fd)).build().user_data(token)) }
    }

    /// # Safety
    /// The buffers of `entry` must stay valid until it completes.
    unsafe fn push(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: by this function's contract.
        unsafe { self.ring.submission().push(&entry) }.expect("the submission queue is never full");
        self.in_flight += 1;
    }

    pub(super) fn submit(&mut self) {
        while !self.ring.submission().is_empty() {
            self.enter(0);
        }
    }

    /// Submits the queued operations and waits for a completion.
    pub(super) fn wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, at_least: usize) {
        match self.ring.submit_and_wait(at_least).map_err(|error| error.raw_os_error()) {
            // The callers retry after signals and memory shortage: the kernel may already be using the buffers.
            Ok(_) | Err(Some(libc::EINTR)) => {}
            Err(Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => std::thread::yield_now(),
            Err(error) => panic!("io_uring_enter failed: error {error:?}"),
        }
    }

    /// Removes a completion, and returns its token and its result or negated error number.
    pub(super) fn completed(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data(), entry.result()))
    }
}

impl AsRawFd for Ring {
    /// Returns a descriptor that is readable when there is a completion.
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
    use test_support::{Capability, skip_without};

    fn result(entry: io_uring::squeue::Entry) -> Option<i32> {
        let Some(mut ring) = Ring::new() else {
            skip_without(Capability::IoUring);
            return None;
        };
        // SAFETY: the tests only use entries without buffers, or entries that the ring refuses to execute.
        unsafe { ring.push(entry) };
        ring.wait();
        ring.completed().map(|(_, result)| result)
    }

    #[test]
    fn ring_allows_only_read_and_fsync() {
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
    fn ring_refuses_registrations() {
        let Some(ring) = Ring::new() else { return skip_without(Capability::IoUring) };
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
    fn ring_is_none_if_io_uring_is_forbidden() {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
        let rules = [(libc::SYS_io_uring_setup, vec![])].into();
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64).unwrap();
        let forbidden = move || {
            apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
            Ring::new().is_none()
        };
        // The filter applies only to this thread.
        assert!(std::thread::spawn(forbidden).join().unwrap());
    }
}
