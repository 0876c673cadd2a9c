//! The system calls that the threads of a running VMM may make. This file is the whole list, with reasons.
//!
//! A thread may make the calls in [`EVERY`] and those of its [`ThreadKind`]. Any other call ends the process. No list
//! contains a call that gains access: execve, ptrace, process_vm_writev, bpf, mount, unshare, setns, keyctl,
//! io_uring_setup, io_uring_register, userfaultfd, chmod, chown, setuid or prlimit64. No memory can be made executable.
//!
//! A thread inherits the filter of the thread that starts it. Device and job threads are therefore started by a
//! separate thread ([`super::threads`]), and vCPU threads and the main thread may not start any.

use libc::{c_int, c_long};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// The main thread: event loop, control socket, console, usage and end records, flushing the disks at the end.
    Main,
    /// The thread of a job of the event loop: snapshots, and attaching and changing disks.
    Job,
    /// The thread that starts the vCPU, device and job threads.
    Starter,
    /// A vCPU thread, which also emulates device registers.
    Vcpu,
    Block,
    Rng,
    Balloon,
    Vsock,
    /// The thread of the network device and the netstack.
    Net,
}

#[derive(Debug)]
pub struct Call {
    pub number: c_long,
    pub arguments: Arguments,
}

#[derive(Debug)]
pub enum Arguments {
    Any,
    /// The argument with this index must be the VMM's process ID.
    OwnProcess(u8),
    /// The argument with this index must be one of these values.
    OneOf(u8, &'static [u64]),
    /// The bits of one argument that the mask selects must equal the value.
    Bits {
        argument: u8,
        mask: u64,
        value: u64,
    },
    /// The bits of each argument that its mask selects must equal its value: (index, mask, value).
    AllBits(&'static [(u8, u64, u64)]),
}

/// Masks that select a whole argument, which the kernel takes as an int or as a pointer.
const INT: u64 = u32::MAX as u64;
const POINTER: u64 = u64::MAX;

const fn any(number: c_long) -> Call {
    Call { number, arguments: Arguments::Any }
}

const fn one_of(number: c_long, argument: u8, values: &'static [u64]) -> Call {
    Call { number, arguments: Arguments::OneOf(argument, values) }
}

const fn without(number: c_long, argument: u8, bits: c_int) -> Call {
    bits_are(number, argument, bits, 0)
}

const fn bits_are(number: c_long, argument: u8, mask: c_int, value: c_int) -> Call {
    Call { number, arguments: Arguments::Bits { argument, mask: mask as u64, value: value as u64 } }
}

const fn all_bits(number: c_long, bits: &'static [(u8, u64, u64)]) -> Call {
    Call { number, arguments: Arguments::AllBits(bits) }
}

/// Allows setsockopt(2) for one option.
macro_rules! socket_option {
    ($level:expr, $name:expr) => {
        all_bits(libc::SYS_setsockopt, &[(1, INT, $level as u64), (2, INT, $name as u64)])
    };
}

const EVERY: &[Call] = &[
    // Waiting and polling.
    any(libc::SYS_futex),
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    any(libc::SYS_sched_yield),
    any(libc::SYS_restart_syscall),
    // Reading, writing and closing eventfds and files that are already open.
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_readv),
    any(libc::SYS_writev),
    any(libc::SYS_close),
    // Memory for the allocator, stacks and guard pages. Mapping executable memory is not allowed.
    without(libc::SYS_mmap, 2, libc::PROT_EXEC),
    without(libc::SYS_mprotect, 2, libc::PROT_EXEC),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_brk),
    // Advice affects only the process's own memory, and newer C libraries use new kinds of advice for stack guards.
    // The balloon releases guest memory with it.
    any(libc::SYS_madvise),
    // The allocator counts CPUs to choose its number of arenas. Hash maps need random keys.
    any(libc::SYS_sched_getaffinity),
    any(libc::SYS_getcpu),
    any(libc::SYS_getrandom),
    // Signal masks when threads start and end, returns from the kick signal's handler, and signal stacks.
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_sigaltstack),
    // Clocks without vDSO support, such as those of threads.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_gettid),
    any(libc::SYS_getpid),
    // The thread's name, and calls of the C library when a thread starts.
    one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64]),
    any(libc::SYS_rseq),
    any(libc::SYS_set_robust_list),
    // Signals to threads of this process, for vCPU kicks and for a panic.
    Call { number: libc::SYS_tgkill, arguments: Arguments::OwnProcess(0) },
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
];

const FILES: &[Call] = &[
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_pread64),
    any(libc::SYS_pwrite64),
    any(libc::SYS_lseek),
    any(libc::SYS_fsync),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fallocate),
    any(libc::SYS_ftruncate),
    any(libc::SYS_fstat),
    any(libc::SYS_fstatfs),
    any(libc::SYS_statx),
    any(libc::SYS_newfstatat),
];

/// Opening files for reading: the seed, and files in `/sys` and `/proc` that the C library reads.
const READ: &[Call] = &[without(libc::SYS_openat, 2, libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | TMPFILE)];
const TMPFILE: c_int = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// The console log. A vCPU thread writes to the log, and starts a new one when the log is full.
const CONSOLE: &[Call] = &[
    bits_are(
        libc::SYS_openat,
        2,
        libc::O_ACCMODE | libc::O_CREAT | libc::O_APPEND | libc::O_TRUNC | TMPFILE,
        libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND,
    ),
    any(libc::SYS_rename),
];

/// Setting up and resetting a device.
const DEVICE: &[Call] = &[
    any(libc::SYS_eventfd2),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    one_of(
        libc::SYS_fcntl,
        1,
        &[libc::F_DUPFD_CLOEXEC as u64, libc::F_GETFD as u64, libc::F_GETFL as u64, libc::F_SETFL as u64],
    ),
];

/// Connected sockets. sendto(2) must have a null address and no MSG_FASTOPEN. sendmsg(2) is not allowed, because its
/// address is in memory, which the filter cannot read.
const SOCKETS: &[Call] = &[
    all_bits(libc::SYS_sendto, &[(3, libc::MSG_FASTOPEN as u64, 0), (4, POINTER, 0)]),
    any(libc::SYS_recvfrom),
    any(libc::SYS_shutdown),
    any(libc::SYS_getsockopt),
    // Connection resets and no delay for small packets, for published ports. Timeouts, for a user-mode network.
    socket_option!(libc::SOL_SOCKET, libc::SO_LINGER),
    socket_option!(libc::IPPROTO_TCP, libc::TCP_NODELAY),
    socket_option!(libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    socket_option!(libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    any(libc::SYS_getsockname),
    any(libc::SYS_getpeername),
    one_of(libc::SYS_ioctl, 1, &[libc::FIONBIO]),
];

/// Receiving the descriptors of disks, published ports and vsock connections.
const RECEIVE: &[Call] = &[any(libc::SYS_recvmsg)];

const ACCEPT: &[Call] = &[any(libc::SYS_accept4)];

/// The pair of Unix streams through which the guest reads the seed.
const PAIR: &[Call] = &[all_bits(
    libc::SYS_socketpair,
    &[(0, INT, libc::AF_UNIX as u64), (1, INT & !(SOCKET_FLAGS as u64), libc::SOCK_STREAM as u64)],
)];
const SOCKET_FLAGS: c_int = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Setting a tap device's offloads to those that the guest's driver uses.
const TAP: &[Call] = &[one_of(libc::SYS_ioctl, 1, &[ioctl::TUNSETOFFLOAD])];

/// Disks that are block devices of the host.
const BLOCK_DEVICES: &[Call] =
    &[one_of(libc::SYS_ioctl, 1, &[ioctl::BLKSSZGET, ioctl::BLKGETSIZE64, ioctl::BLKDISCARD, ioctl::BLKZEROOUT])];

/// io_uring requests, on rings that were created before the filters and are restricted to reads and syncs of open files
/// (`virtio/block/ring.rs`). preadv2 reads data that is already in the page cache.
const RING: &[Call] = &[any(libc::SYS_io_uring_enter), any(libc::SYS_preadv2)];

/// Running a vCPU, and reading its state for a snapshot. The timer ends the time slices of a CPU budget.
const VCPU: &[Call] = &[
    one_of(libc::SYS_ioctl, 1, ioctl::VCPU),
    any(libc::SYS_timer_create),
    any(libc::SYS_timer_settime),
    any(libc::SYS_timer_delete),
];

/// Files in the VMM's own directory: usage and end records, overlays, snapshots.
const OWN_FILES: &[Call] = &[
    any(libc::SYS_openat),
    any(libc::SYS_rename),
    any(libc::SYS_renameat),
    any(libc::SYS_renameat2),
    any(libc::SYS_access),
    any(libc::SYS_faccessat),
    any(libc::SYS_faccessat2),
    any(libc::SYS_readlink),
    any(libc::SYS_unlink),
    any(libc::SYS_unlinkat),
    any(libc::SYS_getcwd),
];

/// Killing a canceled copy of guest memory.
const CANCEL: &[Call] = &[KILL];
const KILL: Call = one_of(libc::SYS_kill, 1, &[libc::SIGKILL as u64]);

/// The calls of a job: for attached disks and overlays, locks and snapshots.
const JOB: &[Call] = &[
    any(libc::SYS_flock),
    // QEMU's byte-range locks on attached disks (`disk/lock.rs`).
    one_of(libc::SYS_fcntl, 1, &[libc::F_OFD_SETLK as u64, libc::F_OFD_GETLK as u64]),
    any(libc::SYS_link),
    any(libc::SYS_linkat),
    // Reading the state of the interrupt controllers, the timer and the clock for snapshots.
    one_of(libc::SYS_ioctl, 1, &[ioctl::KVM_GET_IRQCHIP, ioctl::KVM_GET_PIT2, ioctl::KVM_GET_CLOCK]),
    // Fork: a copy of this process with the same filter writes the guest memory to a file. A pipe leads to the copy.
    one_of(libc::SYS_clone, 0, &[FORK]),
    any(libc::SYS_pipe2),
    any(libc::SYS_close_range),
    any(libc::SYS_waitid),
    any(libc::SYS_wait4),
    KILL,
];

/// The flags of clone(2) that glibc's fork(3) uses.
const FORK: u64 = (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD) as u64;

/// Starting threads, but not processes. `clone3` returns ENOSYS, because its flags are in memory, which the filter
/// cannot read. The C library then uses `clone`.
const THREADS: &[Call] =
    &[bits_are(libc::SYS_clone, 0, libc::CLONE_THREAD | NAMESPACES, libc::CLONE_THREAD), any(libc::SYS_clone3)];
const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Installing a thread's own filter, which can only remove calls.
const FILTER: &[Call] = &[any(libc::SYS_seccomp), one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS as u64])];

impl ThreadKind {
    pub const ALL: [ThreadKind; 9] = [
        ThreadKind::Main,
        ThreadKind::Job,
        ThreadKind::Starter,
        ThreadKind::Vcpu,
        ThreadKind::Block,
        ThreadKind::Rng,
        ThreadKind::Balloon,
        ThreadKind::Vsock,
        ThreadKind::Net,
    ];

    /// Returns the thread's description for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            ThreadKind::Main => "the main thread",
            ThreadKind::Job => "a job thread",
            ThreadKind::Starter => "the starter thread",
            ThreadKind::Vcpu => "a vCPU thread",
            ThreadKind::Block => "a disk thread",
            ThreadKind::Rng => "the entropy device thread",
            ThreadKind::Balloon => "the balloon thread",
            ThreadKind::Vsock => "the vsock device thread",
            ThreadKind::Net => "the network device thread",
        }
    }

    pub fn groups(self) -> &'static [&'static [Call]] {
        match self {
            ThreadKind::Main => {
                &[EVERY, FILES, OWN_FILES, DEVICE, SOCKETS, RECEIVE, ACCEPT, TAP, BLOCK_DEVICES, CANCEL]
            }
            ThreadKind::Job => &[EVERY, FILES, OWN_FILES, DEVICE, SOCKETS, RECEIVE, TAP, BLOCK_DEVICES, JOB, THREADS],
            // Must be a superset of the lists of the threads that the starter starts, because they inherit its filter.
            ThreadKind::Starter => &[
                EVERY,
                FILES,
                OWN_FILES,
                READ,
                CONSOLE,
                DEVICE,
                SOCKETS,
                RECEIVE,
                ACCEPT,
                PAIR,
                TAP,
                BLOCK_DEVICES,
                RING,
                VCPU,
                JOB,
                THREADS,
                FILTER,
            ],
            ThreadKind::Vcpu => &[EVERY, FILES, READ, CONSOLE, DEVICE, SOCKETS, TAP, BLOCK_DEVICES, VCPU],
            ThreadKind::Block => &[EVERY, FILES, READ, DEVICE, BLOCK_DEVICES, RING],
            ThreadKind::Rng | ThreadKind::Balloon => &[EVERY],
            ThreadKind::Vsock => &[EVERY, FILES, READ, DEVICE, SOCKETS, RECEIVE, ACCEPT, PAIR],
            ThreadKind::Net => &[EVERY, FILES, READ, DEVICE, SOCKETS, ACCEPT, TAP],
        }
    }
}

/// ioctl numbers (`linux/kvm.h`, `linux/if_tun.h`, `linux/fs.h`).
mod ioctl {
    const fn number(direction: u64, kind: u8, number: u64, size: usize) -> u64 {
        direction << 30 | (size as u64) << 16 | (kind as u64) << 8 | number
    }
    const fn none(kind: u8, code: u64) -> u64 {
        number(0, kind, code, 0)
    }
    const fn write(kind: u8, code: u64, size: usize) -> u64 {
        number(1, kind, code, size)
    }
    const fn read(kind: u8, code: u64, size: usize) -> u64 {
        number(2, kind, code, size)
    }
    const fn both(kind: u8, code: u64, size: usize) -> u64 {
        number(3, kind, code, size)
    }

    pub const TUNSETOFFLOAD: u64 = write(b'T', 208, 4);
    pub const BLKSSZGET: u64 = none(0x12, 104);
    pub const BLKDISCARD: u64 = none(0x12, 119);
    pub const BLKZEROOUT: u64 = none(0x12, 127);
    pub const BLKGETSIZE64: u64 = read(0x12, 114, 8);

    const KVM: u8 = 0xae;
    pub const KVM_GET_IRQCHIP: u64 = both(KVM, 0x62, size_of::<kvm_bindings::kvm_irqchip>());
    pub const KVM_GET_PIT2: u64 = read(KVM, 0x9f, size_of::<kvm_bindings::kvm_pit_state2>());
    pub const KVM_GET_CLOCK: u64 = read(KVM, 0x7c, size_of::<kvm_bindings::kvm_clock_data>());

    pub const VCPU: &[u64] = &[
        none(KVM, 0x80), // KVM_RUN
        // Registers, for emulating instructions, the log and snapshots.
        read(KVM, 0x81, size_of::<kvm_bindings::kvm_regs>()),
        write(KVM, 0x82, size_of::<kvm_bindings::kvm_regs>()),
        read(KVM, 0x83, size_of::<kvm_bindings::kvm_sregs>()),
        both(KVM, 0x85, size_of::<kvm_bindings::kvm_translation>()),
        read(KVM, 0x9f, size_of::<kvm_bindings::kvm_vcpu_events>()),
        write(KVM, 0xa0, size_of::<kvm_bindings::kvm_vcpu_events>()),
        // Extended states, for snapshots and for the save ports of software KVM (`cpu/xstate.rs`).
        read(KVM, 0xa4, size_of::<kvm_bindings::kvm_xsave>()),
        write(KVM, 0xa5, size_of::<kvm_bindings::kvm_xsave>()),
        // Other state, which is read for snapshots and never written.
        both(KVM, 0x88, size_of::<kvm_bindings::kvm_msrs>()),
        read(KVM, 0x8e, size_of::<kvm_bindings::kvm_lapic_state>()),
        read(KVM, 0x98, size_of::<kvm_bindings::kvm_mp_state>()),
        read(KVM, 0xa1, size_of::<kvm_bindings::kvm_debugregs>()),
        read(KVM, 0xa6, size_of::<kvm_bindings::kvm_xcrs>()),
        none(KVM, 0xad), // KVM_KVMCLOCK_CTRL: notifies the guest of a pause.
    ];
}
