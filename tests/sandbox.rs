//! The VMM's sandbox: attempts to escape from each layer alone, and all layers on a VMM with a guest.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use common::Wisp;
use common::instances::{SMALL, dir, exec};
use common::slots::{self, Bench, MIB};
use disk::disk_image;
use machine::config::{BootProtocol, CpuConfig, DiskConfig, DiskFormat, KernelConfig, MachineConfig};
use machine::control::{ControlClient, ControlRequest, Message};
use machine::sandbox_record::SandboxLayer;
use rustix::process::{Resource, Rlimit, WaitOptions, getrlimit, setrlimit, waitpid};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use test_support::Steps;
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::GuestMemory;
use vmm::process::split::{Side, split};
use vmm::sandbox::calls::ThreadKind;
use vmm::sandbox::files::Grants;
use vmm::sandbox::{landlock, limits, root, seccomp, threads};
use vmm::snapshot::cancellation::Cancellation;
use vmm::snapshot::copy::NewCopy;
use vmm::snapshot::{self, memory::Content};

/// Exit codes of the attempts that [`run_in_child`] runs.
const REFUSED: i32 = 0;
const ESCAPED: i32 = 1;
/// The layer could not be set up.
const NO_LAYER: i32 = 2;

/// Runs `attempt` in a new process, optionally in new namespaces; returns its exit code and standard error.
fn run_in_child(with_namespaces: bool, attempt: impl FnOnce() -> i32) -> (Option<i32>, String) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let run = |writer: &OwnedFd| {
        // SAFETY: the descriptor is open, and this process is a copy that ends right after.
        unsafe {
            libc::dup2(writer.as_raw_fd(), 2);
            libc::_exit(attempt())
        }
    };
    let child = if with_namespaces {
        match split().unwrap() {
            Side::Child(child) => {
                assert!(child.refused.is_none(), "{:?}", child.refused);
                assert!(child.network_refused.is_none(), "{:?}", child.network_refused);
                run(&writer)
            }
            Side::Supervisor { child, .. } => child,
        }
    } else {
        // SAFETY: the child only does what `attempt` does, for which the C library's fork prepares its allocator.
        match unsafe { libc::fork() } {
            0 => run(&writer),
            child => rustix::process::Pid::from_raw(child).expect("fork works"),
        }
    };
    drop(writer);
    let mut said = String::new();
    File::from(reader).read_to_string(&mut said).unwrap();
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    (status.exit_status(), said)
}

fn grants(dir: &Path) -> Grants {
    let kernel = KernelConfig {
        path: "/no/kernel".into(),
        initrd: None,
        cmdline: String::new(),
        identity_options: String::new(),
        protocol: BootProtocol::Auto,
        software_kvm_aware: false,
    };
    let cpus = CpuConfig { count: 1, threads_per_core: 1 };
    let config = MachineConfig {
        cpus,
        memory_mib: 64,
        kernel,
        disks: vec![],
        disk_slots: 0,
        vsock: None,
        net: None,
        identity: None,
        cpu_budget: None,
        disk_limits: None,
    };
    Grants::of(dir, &config, None)
}

fn all_refused(attempts: &[bool]) -> i32 {
    if attempts.iter().any(|succeeded| *succeeded) { ESCAPED } else { REFUSED }
}

#[test]
fn landlock_allows_only_own_directory() {
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = other.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::write(own.path().join("console.log"), "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let grants = grants(own.path());
    let (code, said) = run_in_child(false, || {
        if !matches!(landlock::enter(&grants), Ok(Some(_))) {
            return NO_LAYER;
        }
        let own_files = File::options().append(true).open(own.path().join("console.log")).is_ok()
            && fs::write(own.path().join("new"), "new").is_ok()
            && fs::rename(own.path().join("new"), own.path().join("newer")).is_ok();
        if !own_files {
            return NO_LAYER;
        }
        all_refused(&[
            fs::read(&secret).is_ok(),
            fs::write(&secret, "overwritten").is_ok(),
            fs::write(other.path().join("planted"), "").is_ok(),
            fs::read_dir("/").is_ok(),
            fs::hard_link(&secret, own.path().join("link")).is_ok(),
            Command::new("/bin/true").status().is_ok(),
            TcpStream::connect(address).is_ok(),
        ])
    });
    assert_eq!((code, said.as_str()), (Some(REFUSED), ""));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
}

#[test]
fn namespaces_hide_other_files_and_processes() {
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = other.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let socket = other.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let grants = grants(own.path());
    let parent = std::process::id() as i32;
    let (code, said) = run_in_child(true, || {
        if root::enter(&grants).is_err() || limits::only_capabilities(CapabilitySet::empty()).is_err() {
            return NO_LAYER;
        }
        if fs::write(own.path().join("new"), "new").is_err() || fs::read("/proc/self/statm").is_err() {
            return NO_LAYER;
        }
        all_refused(&[
            secret.exists(),
            Path::new("/etc").exists(),
            Path::new("/proc/1").exists(),
            fs::create_dir("/new").is_ok(),
            std::os::unix::net::UnixStream::connect(&socket).is_ok(),
            // SAFETY: signal 0 only checks that the process exists.
            unsafe { libc::kill(parent, 0) } == 0,
            rustix::process::getppid().is_some(),
            rustix::mount::unmount("/", rustix::mount::UnmountFlags::DETACH).is_ok(),
            rustix::process::chroot("/").is_ok(),
        ])
    });
    assert_eq!((code, said.as_str()), (Some(REFUSED), ""));
}

#[test]
fn resource_limits_and_privileges_cannot_be_raised() {
    let (code, said) = run_in_child(false, || {
        if limits::resources()
            .and_then(|()| limits::only_capabilities(CapabilitySet::empty()))
            .and_then(|()| limits::no_new_privileges())
            .is_err()
        {
            return NO_LAYER;
        }
        let is_core_off = getrlimit(Resource::Core) == Rlimit { current: Some(0), maximum: Some(0) };
        if !is_core_off || !rustix::thread::no_new_privs().unwrap_or(false) {
            return NO_LAYER;
        }
        let raised = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
        all_refused(&[
            setrlimit(Resource::Core, raised).is_ok(),
            setrlimit(Resource::Nofile, raised).is_ok(),
            rustix::thread::set_no_new_privs(false).is_ok(),
            // SAFETY: the call takes numbers only.
            unsafe { libc::setuid(12345) } == 0,
            rustix::system::sethostname(b"mine").is_ok(),
        ])
    });
    assert_eq!((code, said.as_str()), (Some(REFUSED), ""));
}

#[test]
fn close_others_keeps_only_listed_descriptors() {
    let (kept, other) = (File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap());
    let (kept, other) = (kept.as_raw_fd(), other.as_raw_fd());
    let (code, _) = run_in_child(false, || {
        if limits::close_others(&[kept]).is_err() {
            return NO_LAYER;
        }
        // SAFETY: fcntl with F_GETFD only looks the number up.
        let is_open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1;
        if is_open(kept) { all_refused(&[is_open(other)]) } else { NO_LAYER }
    });
    assert_eq!(code, Some(REFUSED));
}

/// Asserts that the filter of `kind` kills a process that makes the call, and that the message names the call.
fn violates<T>(kind: ThreadKind, name: &str, call: impl FnOnce() -> T) {
    let (code, said) = run_in_child(false, || {
        if seccomp::prepare().and_then(|()| seccomp::enter(kind)).is_err() {
            return NO_LAYER;
        }
        let _ = call();
        ESCAPED
    });
    assert_eq!(code, Some(machine::sandbox_record::SECCOMP_EXIT_CODE), "{name}: {said}");
    assert!(said.contains(kind.as_str()) && said.contains(&format!("({name})")), "{said}");
}

#[test]
fn unlisted_syscall_kills_process_and_is_named() {
    let syscall = |number: libc::c_long, argument: usize| {
        // SAFETY: none of the calls that are tried reads or writes memory before it is refused.
        unsafe { libc::syscall(number, argument, 0, 0, 0, 0) };
    };
    for kind in ThreadKind::ALL {
        violates(kind, "execve", || syscall(libc::SYS_execve, 0));
        violates(kind, "ptrace", || syscall(libc::SYS_ptrace, 0));
        violates(kind, "prlimit64", || syscall(libc::SYS_prlimit64, 0));
        violates(kind, "rt_sigaction", || syscall(libc::SYS_rt_sigaction, libc::SIGSYS as usize));
        violates(kind, "unshare", || syscall(libc::SYS_unshare, libc::CLONE_NEWUSER as usize));
        violates(kind, "clone", || syscall(libc::SYS_clone, (libc::CLONE_NEWUSER | libc::SIGCHLD) as usize));
    }
    // Filters also check arguments.
    violates(ThreadKind::Block, "ioctl", || {
        // SAFETY: KVM_RUN takes no memory, and there is no such descriptor.
        unsafe { libc::syscall(libc::SYS_ioctl, -1, 0xae80) };
    });
    violates(ThreadKind::Vcpu, "mmap", || {
        // SAFETY: a new mapping has no other users.
        unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
    });
    violates(ThreadKind::Block, "openat", || {
        let _ = File::create("/nowhere");
    });
}

/// Saves a machine's memory in both ways, and attaches, switches, grows and detaches a disk.
fn perform_jobs(bench: &Bench, memory: &GuestMemory, disk: &DiskConfig, layer: &Path) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let (dir, cancellation) = (bench.dir.path(), Cancellation::default());
    snapshot::memory::write(memory, None, dir, &cancellation).map_err(|error| text(&error))?;
    let new = NewCopy::create(memory, dir).map_err(|error| text(&error))?;
    let copy = new.begin(&cancellation).map_err(|error| text(&error))?;
    let content = Content::of(memory, None, dir).map_err(|error| text(&error))?;
    copy.finish(&content).map_err(|error| text(&error))?;
    bench.slots.attach(disk).map_err(|error| text(&error))?;
    bench.slots.switch(&disk.id, layer).map_err(|error| text(&error))?;
    bench.slots.resize(&disk.id, 4 * MIB).map_err(|error| text(&error))?;
    bench.slots.detach(&disk.id, false).map_err(|error| text(&error))?;
    fs::hard_link(layer, bench.path("linked")).map_err(|error| text(&error))
}

#[test]
fn filter_of_requests_allows_snapshots_and_disk_changes() {
    let bench = Arc::new(slots::bench(1));
    let memory = vmm::memory::allocate(64).unwrap();
    memory.write_slice(&[7; 8192], GuestAddress(0x1000)).unwrap();
    let disk = bench.disk("disk", DiskFormat::Raw, MIB);
    let layer = bench.path("layer");
    disk_image::create_layer(&layer, &disk.path, DiskFormat::Raw, None).unwrap();
    let (of_job, of_child) = (Arc::clone(&bench), layer.clone());
    let (code, said) = run_in_child(false, move || {
        if seccomp::prepare().and_then(|()| threads::begin()?.finish()).is_err() {
            return NO_LAYER;
        }
        let run = move || perform_jobs(&of_job, &memory, &disk, &of_child);
        let performed = threads::spawn("job".into(), ThreadKind::Job, run).map(JoinHandle::join);
        match performed {
            Ok(Ok(Ok(()))) => REFUSED,
            other => {
                eprintln!("{other:?}");
                ESCAPED
            }
        }
    });
    assert_eq!((code, said.as_str()), (Some(REFUSED), ""));
    let saved = File::open(bench.path("memory")).unwrap();
    let mut bytes = [0; 8192];
    saved.read_exact_at(&mut bytes, 0x1000).unwrap();
    assert_eq!(bytes, [7; 8192]);
    assert_eq!(fs::read(bench.path("linked")).unwrap(), fs::read(layer).unwrap());
}

/// If namespaces and Landlock are unavailable, only the seccomp filters keep a VMM from the host's network.
#[test]
fn socket_creation_is_refused_in_every_thread() {
    for kind in ThreadKind::ALL {
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK, libc::AF_PACKET]
        {
            // SAFETY: the call takes numbers only.
            violates(kind, "socket", || unsafe { libc::socket(family, libc::SOCK_STREAM, 0) });
        }
        // SAFETY: the call takes numbers only.
        violates(kind, "listen", || unsafe { libc::listen(-1, 1) });
        // SAFETY: there is no such descriptor, so that the kernel reads no memory.
        violates(kind, "bind", || unsafe { libc::bind(-1, std::ptr::null(), 0) });
        // SAFETY: as above.
        violates(kind, "sendmsg", || unsafe { libc::sendmsg(-1, std::ptr::null(), 0) });
        // SAFETY: as above.
        violates(kind, "sendmmsg", || unsafe { libc::sendmmsg(-1, std::ptr::null_mut(), 0, 0) });
    }
    for (domain, kind) in [(libc::AF_UNIX, libc::SOCK_DGRAM), (libc::AF_INET, libc::SOCK_STREAM)] {
        // SAFETY: there is room for two descriptors.
        violates(ThreadKind::Vsock, "socketpair", || unsafe { libc::socketpair(domain, kind, 0, [0; 2].as_mut_ptr()) });
    }
}

#[test]
fn connect_to_abstract_socket_is_refused() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::UnixListener;
    let name = format!("wisp-test-{}", std::process::id());
    let listener =
        UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    for kind in ThreadKind::ALL {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
        violates(kind, "connect", || rustix::net::connect(&socket, &address));
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

const KINDS_WITH_SOCKETS: [ThreadKind; 5] =
    [ThreadKind::Main, ThreadKind::Starter, ThreadKind::Vcpu, ThreadKind::Vsock, ThreadKind::Net];

#[test]
fn udp_send_to_address_is_refused() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let address = receiver.local_addr().unwrap();
    for kind in KINDS_WITH_SOCKETS {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        violates(kind, "sendto", || socket.send_to(b"out", address));
    }
    assert_eq!(receiver.recv_from(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn tcp_fast_open_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let SocketAddr::V4(to) = listener.local_addr().unwrap() else { panic!("an IPv4 address") };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let send = |fd: i32, flags, address: *const libc::sockaddr_in| {
        let length = if address.is_null() { 0 } else { size_of::<libc::sockaddr_in>() as u32 };
        // SAFETY: three bytes are read, and an address of that length, if there is one.
        unsafe { libc::sendto(fd, b"out".as_ptr().cast(), 3, flags, address.cast(), length) }
    };
    for kind in KINDS_WITH_SOCKETS {
        for (flags, address) in [
            (libc::MSG_FASTOPEN, &raw const address),
            (libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL, &raw const address),
            (libc::MSG_FASTOPEN, std::ptr::null()),
            (0, &raw const address),
        ] {
            // The socket is created before the filter applies, like a listener that the VMM inherits.
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
            violates(kind, "sendto", || send(socket.as_raw_fd(), flags, address));
        }
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn socket_options_of_other_levels_are_refused() {
    let set = |level: i32, name: i32| {
        // SAFETY: there is no such descriptor, and four bytes are there to be read.
        move || unsafe { libc::setsockopt(-1, level, name, (&raw const level).cast(), 4) }
    };
    for kind in KINDS_WITH_SOCKETS {
        violates(kind, "setsockopt", set(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP));
        violates(kind, "setsockopt", set(libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP));
        violates(kind, "setsockopt", set(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT));
        violates(kind, "setsockopt", set(libc::IPPROTO_TCP, libc::TCP_ULP));
        violates(kind, "setsockopt", set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER));
        violates(kind, "setsockopt", set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE));
        violates(kind, "setsockopt", set(libc::SOL_NETLINK, 1));
    }
}

/// A VMM with published ports serves them on inherited listeners, because its own network namespace is empty.
#[test]
fn passed_listener_serves_clients_from_empty_network_namespace() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        stream.write_all(b"question").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let dir = tempfile::tempdir().unwrap();
    let grants = grants(dir.path());
    let (code, said) = run_in_child(true, || {
        let is_isolated = TcpStream::connect(address).is_err() && UdpSocket::bind("127.0.0.1:0").is_ok();
        let is_confined = root::enter(&grants).is_ok()
            && landlock::enter(&grants).is_ok()
            && limits::only_capabilities(CapabilitySet::empty()).is_ok()
            && limits::no_new_privileges().is_ok()
            && seccomp::prepare().and_then(|()| seccomp::enter(ThreadKind::Net)).is_ok();
        if !is_isolated || !is_confined {
            return NO_LAYER;
        }
        let ready = |fd: &dyn std::os::fd::AsFd| {
            let deadline = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            let mut ready = [rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut ready, Some(&deadline)) == Ok(1)
        };
        let served = || -> std::io::Result<bool> {
            if !ready(&listener) {
                return Ok(false);
            }
            let (mut stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let mut question = [0; 8];
            if !ready(&stream) {
                return Ok(false);
            }
            stream.read_exact(&mut question)?;
            stream.write_all(b"answer")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            Ok(&question == b"question")
        };
        if served().is_ok_and(|served| served) { REFUSED } else { ESCAPED }
    });
    assert_eq!((code, said.as_str()), (Some(REFUSED), ""));
    assert_eq!(client.join().unwrap(), "answer");
}

fn thread_status(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let texts = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let prefix = format!("{field}:");
    let value = |text: String| Some(text.lines().find(|line| line.starts_with(&prefix))?[prefix.len()..].trim().into());
    texts.filter_map(value).collect()
}

#[test]
fn running_vmm_has_minimal_files_and_privileges() {
    let wisp = Wisp::new();
    // The VMM must not keep a descriptor that its parent leaked.
    let leak = File::open("/etc/passwd").unwrap();
    let leak = rustix::io::fcntl_dupfd_cloexec(&leak, 100).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let running = wisp.start_guest();
    drop(leak);
    let dir = wisp.runs().remove(0);
    let mut control = ControlClient::connect(&dir.join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Status).unwrap();
    let Message::Status(status) = control.receive(Some(common::DEADLINE)).unwrap() else { panic!("no status") };
    let sandbox = status.sandbox;
    let mut steps = Steps::new();
    steps.run("all layers are active", || {
        assert_eq!(sandbox.missing, [] as [String; 0]);
        for layer in [
            SandboxLayer::Seccomp,
            SandboxLayer::Namespaces,
            SandboxLayer::NetworkNamespace,
            SandboxLayer::Files,
            SandboxLayer::Landlock,
        ] {
            assert!(sandbox.layers.contains(&layer), "{sandbox:?}");
        }
        assert_ne!(sandbox.pid, status.pid);
    });

    steps.run("no thread has a privilege", || {
        for (field, value) in [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0000000000000000")] {
            let threads = thread_status(sandbox.pid, field);
            assert!(threads.len() >= 5 && threads.iter().all(|thread| thread == value), "{field}: {threads:?}");
        }
    });
    steps.run("the environment has only allow-listed variables", || {
        // This process has more environment variables, such as cargo's.
        for pid in [status.pid, sandbox.pid] {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
            let names = environment.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
            let names: Vec<String> =
                names.map(|entry| String::from_utf8_lossy(entry).split('=').next().unwrap().into()).collect();
            let is_kept = |name: &String| machine::environment::KEPT.contains(&name.as_str());
            assert!(names.contains(&"WISP_HOME".to_string()) && names.iter().all(is_kept), "{names:?}");
        }
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    });

    let descriptors = fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap();
    let known = |target: &PathBuf| {
        let text = target.to_string_lossy();
        let anonymous = ["anon_inode:[event", "anon_inode:[signalfd]", "anon_inode:[io_uring]", "anon_inode:kvm-v"];
        let others = ["socket:", "pipe:", "/dev/null"];
        let is_file = target.starts_with(wisp.home()) && !text.contains("vmm.log");
        anonymous.iter().chain(&others).any(|kind| text.starts_with(kind)) || is_file
    };
    steps.run("the VMM's disk cannot be reopened by its path", || {
        // The disk is open, but its path does not exist in the sandbox.
        let root = PathBuf::from(format!("/proc/{}/root", sandbox.pid));
        let image = wisp.bundle().join("root.ext4");
        assert!(image.exists() && root.join(dir.strip_prefix("/").unwrap()).exists());
        assert!(!root.join(image.strip_prefix("/").unwrap()).exists());
    });
    let targets: Vec<_> = descriptors.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
    steps.run("only known files are open", || {
        targets.iter().for_each(|target| assert!(known(target), "{}", target.display()));
    });
    steps.run("the disk has an io_uring", || {
        // The disk has an io_uring, unless the log says that the disk handles one request at a time.
        let rings = targets.iter().filter(|target| target.to_string_lossy() == "anon_inode:[io_uring]").count();
        let log = fs::read_to_string(dir.join("vmm.log")).unwrap();
        assert_eq!(rings, usize::from(!log.contains("one request at a time")), "{log}");
    });
    steps.run("core dumps are disabled", || {
        let limits = fs::read_to_string(format!("/proc/{}/limits", sandbox.pid)).unwrap();
        assert!(
            limits.lines().any(|line| line.split_whitespace().take(5).eq(["Max", "core", "file", "size", "0"])),
            "{limits}"
        );
    });

    steps.run("files and directories are private", || {
        let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap()) & 0o777;
        for private in [wisp.home(), &wisp.home().join("runs"), &dir] {
            assert_eq!(mode(private), 0o700, "{}", private.display());
        }
        for file in [dir.clone(), dir.join("vmm")].iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
            let file = file.unwrap().path();
            assert_eq!(mode(&file) & 0o077, 0, "{}: {:o}", file.display(), mode(&file));
        }
    });
    // In the instance's directory, the VMM sees only its own directory and files that it must read.
    steps.run("the VMM sees only its own directory", || {
        let seen = PathBuf::from(format!("/proc/{}/root", sandbox.pid)).join(dir.strip_prefix("/").unwrap());
        assert!(seen.join("vmm/console.log").exists());
        let seen: Vec<_> = fs::read_dir(seen).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(dir.join("config.json").exists() && dir.join("lock").exists());
        assert!(seen.iter().all(|name| ["vmm", "link.json", "seed"].contains(&name.to_str().unwrap())), "{seen:?}");
    });
    steps.run("another user has no access", || assert_other_user_has_no_access(&wisp, &dir));
    running.wait().expect_code(0);
}

/// Asserts that another user cannot access the machine's files. Only root can check this, by becoming another user.
fn assert_other_user_has_no_access(wisp: &Wisp, dir: &Path) {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return test_support::skip_without(test_support::Capability::Root);
    }
    let (code, said) = run_in_child(false, || {
        // SAFETY: the calls take numbers, and no memory.
        let is_nobody = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0 && libc::setgid(NOBODY) == 0 && libc::setuid(NOBODY) == 0
        };
        if !is_nobody {
            return NO_LAYER;
        }
        all_refused(&[
            fs::read_dir(wisp.home()).is_ok(),
            dir.join("config.json").exists(),
            fs::read(dir.join("vmm/console.log")).is_ok(),
            std::os::unix::net::UnixStream::connect(dir.join("vmm/control.sock")).is_ok(),
            std::os::unix::net::UnixStream::connect(dir.join("vmm/vsock.sock")).is_ok(),
            node::home::Home::at(wisp.home()).is_ok(),
        ])
    });
    assert_eq!((code, said.as_str()), (Some(REFUSED), ""));
}

/// Returns filters that simulate a host without process namespaces and a kernel without Landlock.
fn restricted_host_filters() -> [BpfProgram; 2] {
    let filter = |call: i64, rules: Vec<SeccompRule>, error: i32| {
        let refuse = SeccompAction::Errno(error as u32);
        let target = std::env::consts::ARCH.try_into().unwrap();
        SeccompFilter::new([(call, rules)].into(), SeccompAction::Allow, refuse, target).unwrap().try_into().unwrap()
    };
    let namespace = libc::CLONE_NEWPID as u64;
    let wanted = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(namespace), namespace);
    let clone = filter(libc::SYS_clone, vec![SeccompRule::new(vec![wanted.unwrap()]).unwrap()], libc::EPERM);
    [clone, filter(libc::SYS_landlock_create_ruleset, vec![], libc::ENOSYS)]
}

#[test]
fn missing_sandbox_layers_are_reported_and_others_apply() {
    let wisp = Wisp::warm();
    let mut command = wisp.command(&[&["launch", "--name", "it", "--network", "none"], &SMALL[..]].concat());
    let filters = restricted_host_filters();
    // SAFETY: prctl and seccomp are async-signal-safe, and the filters have already been compiled.
    unsafe {
        command.pre_exec(move || {
            filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter).map_err(std::io::Error::other))
        });
    }
    let launched = command.output().unwrap();
    assert!(launched.status.success(), "{}", String::from_utf8_lossy(&launched.stderr));
    assert_eq!(exec(&wisp, "it", "echo here"), "here");

    let mut control = ControlClient::connect(&dir(&wisp, "it").join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Status).unwrap();
    let Message::Status(status) = control.receive(Some(common::DEADLINE)).unwrap() else { panic!("no status") };
    let sandbox = status.sandbox;
    assert_eq!(sandbox.layers, [SandboxLayer::NoNewPrivileges, SandboxLayer::Seccomp, SandboxLayer::Limits]);
    let [namespaces, landlock] = &sandbox.missing[..] else { panic!("{sandbox:?}") };
    assert!(namespaces.contains("no namespaces: ") && namespaces.contains("Operation not permitted"), "{namespaces}");
    assert!(landlock.contains("no Landlock"), "{landlock}");
    let shown = wisp.run(&["show", "it"]).expect_code(0).text();
    assert!(shown.contains(namespaces) && shown.contains(landlock), "{shown}");
    for (field, value) in [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0000000000000000")] {
        let threads = thread_status(sandbox.pid, field);
        assert!(threads.len() >= 5 && threads.iter().all(|thread| thread == value), "{field}: {threads:?}");
    }
    wisp.run(&["terminate", "it"]).expect_code(0);
}
