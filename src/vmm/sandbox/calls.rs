//! The system calls that a running monitor's threads may make: the whole list, each with its reason.
//!
//! A thread has what [`EVERY`] thread has and the groups of its [`Kind`]; everything else ends the process. The calls with
//! which a process gets more than it has are in no group: none of execve, ptrace, process_vm_writev, bpf, mount, unshare,
//! setns, keyctl, io_uring_setup, io_uring_register, userfaultfd, chmod, chown, setuid or prlimit64. No memory is made executable.
//!
//! A thread that another starts inherits its filter, which is why devices' threads are started by a thread of their own
//! ([`super::threads`]): a vCPU may not start one.

use libc::{c_int, c_long};

/// A thread's part in a machine, by which it is given its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The machine's own: control socket, console, saving, disks that come and go.
    Main,
    /// Starts the devices' threads.
    Starter,
    /// Runs a virtual CPU, and serves its accesses to devices.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves the entropy device.
    Rng,
    /// Serves the vsock device.
    Vsock,
    /// Serves the network device and its link.
    Net,
}

/// One call.
#[derive(Debug)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// With which arguments.
    pub arguments: Arguments,
}

/// What is asked of a call's arguments.
#[derive(Debug)]
pub enum Arguments {
    /// Nothing.
    Any,
    /// The argument of this index is the process's own id.
    OwnProcess(u8),
    /// The argument of this index is one of these.
    OneOf(u8, &'static [u64]),
    /// Of the argument of this index, the bits under the mask are the value.
    Bits {
        /// Which argument.
        argument: u8,
        /// Which bits.
        mask: u64,
        /// What they are.
        value: u64,
    },
    /// Of the argument of each index, the bits under the mask are the value: (index, mask, value).
    AllBits(&'static [(u8, u64, u64)]),
}

/// All bits of an argument that the kernel takes as an int, and of one that it takes as a pointer.
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

/// Setting one socket option.
macro_rules! socket_option {
    ($level:expr, $name:expr) => {
        all_bits(libc::SYS_setsockopt, &[(1, INT, $level as u64), (2, INT, $name as u64)])
    };
}

/// What every thread needs to be one.
const EVERY: &[Call] = &[
    // Waiting, on each other and on what they serve.
    any(libc::SYS_futex),
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    any(libc::SYS_sched_yield),
    any(libc::SYS_restart_syscall),
    // eventfds, logs, whatever is open.
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_readv),
    any(libc::SYS_writev),
    any(libc::SYS_close),
    // Memory: the allocator's, stacks, guard pages. Never to be executed.
    without(libc::SYS_mmap, 2, libc::PROT_EXEC),
    without(libc::SYS_mprotect, 2, libc::PROT_EXEC),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_brk),
    // Of the process's own, whatever the advice; C libraries have new kinds for their stacks' guards.
    any(libc::SYS_madvise),
    // The allocator counts CPUs, to know how many arenas it may have; hash maps have random keys.
    any(libc::SYS_sched_getaffinity),
    any(libc::SYS_getcpu),
    any(libc::SYS_getrandom),
    // Signals: the kick of vCPUs, masks around the start and the end of threads, and their stacks.
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_sigaltstack),
    // Clocks that have no place in the vDSO, as those of threads.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_gettid),
    any(libc::SYS_getpid),
    // A thread's name, and what its libraries ask of it when it starts.
    one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64]),
    any(libc::SYS_rseq),
    any(libc::SYS_set_robust_list),
    // The kick of vCPUs, and a panic's end: signals for threads of this process.
    Call { number: libc::SYS_tgkill, arguments: Arguments::OwnProcess(0) },
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
];

/// Using files that are open.
const FILES: &[Call] = &[
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_pread64),
    any(libc::SYS_pwrite64),
    any(libc::SYS_lseek),
    any(libc::SYS_fsync),
    any(libc::SYS_fdatasync),
    // Growing, discarding, zeroing.
    any(libc::SYS_fallocate),
    any(libc::SYS_ftruncate),
    any(libc::SYS_fstat),
    any(libc::SYS_fstatfs),
    any(libc::SYS_statx),
    any(libc::SYS_newfstatat),
];

/// Opening files to read: a vsock's seed, and what the C library may look for in `/sys` and `/proc`.
const READ: &[Call] = &[without(libc::SYS_openat, 2, libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | TMPFILE)];
const TMPFILE: c_int = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// The console's log, which a vCPU writes, and has another begin when it is full.
const CONSOLE: &[Call] = &[
    bits_are(
        libc::SYS_openat,
        2,
        libc::O_ACCMODE | libc::O_CREAT | libc::O_APPEND | libc::O_TRUNC | TMPFILE,
        libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND,
    ),
    any(libc::SYS_rename),
];

/// What a device is made of when its driver sets it up, and what it leaves when it is reset.
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

/// Sockets that are connected. Nothing is sent to an address: not by sendto(2), whose address is no null pointer or whose flags
/// have MSG_FASTOPEN, and not by sendmsg(2), whose address is in memory that no filter sees.
const SOCKETS: &[Call] = &[
    all_bits(libc::SYS_sendto, &[(3, libc::MSG_FASTOPEN as u64, 0), (4, POINTER, 0)]),
    any(libc::SYS_recvfrom),
    any(libc::SYS_shutdown),
    any(libc::SYS_getsockopt),
    // A reset at the end of a published port's connection, and its small packets; deadlines for a user-mode network.
    socket_option!(libc::SOL_SOCKET, libc::SO_LINGER),
    socket_option!(libc::IPPROTO_TCP, libc::TCP_NODELAY),
    socket_option!(libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    socket_option!(libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    any(libc::SYS_getsockname),
    any(libc::SYS_getpeername),
    one_of(libc::SYS_ioctl, 1, &[libc::FIONBIO]),
];

/// Descriptors that come with messages: disks, ports, vsock's connections.
const RECEIVE: &[Call] = &[any(libc::SYS_recvmsg)];

/// Sockets that others connect to.
const ACCEPT: &[Call] = &[any(libc::SYS_accept4)];

/// What the guest reads of its seed comes through a pair of Unix streams.
const PAIR: &[Call] = &[all_bits(
    libc::SYS_socketpair,
    &[(0, INT, libc::AF_UNIX as u64), (1, INT & !(SOCKET_FLAGS as u64), libc::SOCK_STREAM as u64)],
)];
const SOCKET_FLAGS: c_int = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// A tap is told what the guest's driver takes.
const TAP: &[Call] = &[one_of(libc::SYS_ioctl, 1, &[ioctl::TUNSETOFFLOAD])];

/// Disks on the host's block devices.
const BLOCK_DEVICES: &[Call] =
    &[one_of(libc::SYS_ioctl, 1, &[ioctl::BLKSSZGET, ioctl::BLKGETSIZE64, ioctl::BLKDISCARD, ioctl::BLKZEROOUT])];

/// Reads that are in flight together: by rings that were made before and are restricted to reads and syncs of what is open
/// (`virtio/block/ring.rs`); and the read of what need not be, because it is in memory.
const RING: &[Call] = &[any(libc::SYS_io_uring_enter), any(libc::SYS_preadv2)];

/// Running a virtual CPU, and reading its state to save it; the timer that ends the slices of a CPU budget.
const VCPU: &[Call] = &[
    one_of(libc::SYS_ioctl, 1, ioctl::VCPU),
    any(libc::SYS_timer_create),
    any(libc::SYS_timer_settime),
    any(libc::SYS_timer_delete),
];

/// The machine's own thread: the files of disks that come and of layers, locks, saved machines, the record of the end.
const MACHINE: &[Call] = &[
    any(libc::SYS_openat),
    any(libc::SYS_flock),
    // Byte-range locks of disks that come, those of QEMU (`virtio/block/lock.rs`).
    one_of(libc::SYS_fcntl, 1, &[libc::F_OFD_SETLK as u64, libc::F_OFD_GETLK as u64]),
    any(libc::SYS_rename),
    any(libc::SYS_renameat),
    any(libc::SYS_renameat2),
    any(libc::SYS_access),
    any(libc::SYS_faccessat),
    any(libc::SYS_faccessat2),
    any(libc::SYS_readlink),
    any(libc::SYS_unlink),
    any(libc::SYS_unlinkat),
    any(libc::SYS_link),
    any(libc::SYS_linkat),
    any(libc::SYS_getcwd),
    // What of the guest's memory is resident.
    any(libc::SYS_mincore),
    // The interrupt controllers, the timer and the clock of a machine that is saved.
    one_of(libc::SYS_ioctl, 1, &[ioctl::KVM_GET_IRQCHIP, ioctl::KVM_GET_PIT2, ioctl::KVM_GET_CLOCK]),
    // A fork: the copy of this process, with this filter, that writes guest memory.
    one_of(libc::SYS_clone, 0, &[FORK]),
    any(libc::SYS_close_range),
    any(libc::SYS_wait4),
    one_of(libc::SYS_kill, 1, &[libc::SIGKILL as u64]),
];

/// What glibc's fork(3) gives clone(2).
const FORK: u64 = (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD) as u64;

/// Starting threads, and only threads. `clone3` is answered with ENOSYS, because its flags are in memory where no filter sees
/// them: the C library then uses `clone`.
const THREADS: &[Call] =
    &[bits_are(libc::SYS_clone, 0, libc::CLONE_THREAD | NAMESPACES, libc::CLONE_THREAD), any(libc::SYS_clone3)];
const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Giving a thread its filter, which can only take calls away.
const FILTER: &[Call] = &[any(libc::SYS_seccomp), one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS as u64])];

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [Kind::Main, Kind::Starter, Kind::Vcpu, Kind::Block, Kind::Rng, Kind::Vsock, Kind::Net];

    /// What a person calls such a thread.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Main => "the machine's own thread",
            Kind::Starter => "the thread that starts others",
            Kind::Vcpu => "a vCPU's thread",
            Kind::Block => "a disk's thread",
            Kind::Rng => "the entropy device's thread",
            Kind::Vsock => "the vsock device's thread",
            Kind::Net => "the network device's thread",
        }
    }

    /// The groups of calls that a thread of this kind has.
    pub fn groups(self) -> &'static [&'static [Call]] {
        match self {
            Kind::Main => &[EVERY, FILES, DEVICE, SOCKETS, RECEIVE, ACCEPT, TAP, BLOCK_DEVICES, MACHINE, THREADS],
            // It has what those have that it starts: they can only have less than it.
            Kind::Starter => &[
                EVERY,
                FILES,
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
                THREADS,
                FILTER,
            ],
            Kind::Vcpu => &[EVERY, FILES, READ, CONSOLE, DEVICE, SOCKETS, TAP, BLOCK_DEVICES, VCPU],
            Kind::Block => &[EVERY, FILES, READ, DEVICE, BLOCK_DEVICES, RING],
            Kind::Rng => &[EVERY],
            Kind::Vsock => &[EVERY, FILES, READ, DEVICE, SOCKETS, RECEIVE, ACCEPT, PAIR],
            Kind::Net => &[EVERY, FILES, READ, DEVICE, SOCKETS, ACCEPT, TAP],
        }
    }
}

/// Numbers of ioctls (`linux/kvm.h`, `linux/if_tun.h`, `linux/fs.h`).
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
        // Registers, for accesses that are emulated, for the log, and for saving.
        read(KVM, 0x81, size_of::<kvm_bindings::kvm_regs>()),
        write(KVM, 0x82, size_of::<kvm_bindings::kvm_regs>()),
        read(KVM, 0x83, size_of::<kvm_bindings::kvm_sregs>()),
        both(KVM, 0x85, size_of::<kvm_bindings::kvm_translation>()),
        read(KVM, 0x9f, size_of::<kvm_bindings::kvm_vcpu_events>()),
        write(KVM, 0xa0, size_of::<kvm_bindings::kvm_vcpu_events>()),
        // Extended states: saving, and what a software KVM's guest has kept (`cpu/xstate.rs`).
        read(KVM, 0xa4, size_of::<kvm_bindings::kvm_xsave>()),
        write(KVM, 0xa5, size_of::<kvm_bindings::kvm_xsave>()),
        // Only read, to be saved.
        both(KVM, 0x88, size_of::<kvm_bindings::kvm_msrs>()),
        read(KVM, 0x8e, size_of::<kvm_bindings::kvm_lapic_state>()),
        read(KVM, 0x98, size_of::<kvm_bindings::kvm_mp_state>()),
        read(KVM, 0xa1, size_of::<kvm_bindings::kvm_debugregs>()),
        read(KVM, 0xa6, size_of::<kvm_bindings::kvm_xcrs>()),
        none(KVM, 0xad), // KVM_KVMCLOCK_CTRL: the guest is told of a pause.
    ];
}
