//! Machines that boot the embedded image, for tests of the VMM itself. The test process is the VMM's watcher.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use machine::MachineConfig;
use machine::config::{BootProtocol, CpuConfig, DiskAccess, DiskConfig, DiskFormat, KernelConfig, VsockConfig};
use machine::control::{ControlClient, ControlRequest, Message, VmmStatus};
use node::guest::{Agent, ExecRequest, Streams};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};

use super::{DEADLINE, Wisp};

/// Held while a command runs in a guest. This process can run only one command at a time, because it forwards its
/// signals to the command.
static COMMAND: Mutex<()> = Mutex::new(());

pub struct Machine {
    pub dir: tempfile::TempDir,
    pub vmm: Child,
    pub control: ControlClient,
}

pub fn config(wisp: &Wisp) -> MachineConfig {
    let bundle = wisp.bundle();
    let root = DiskConfig {
        id: "root".into(),
        path: bundle.join("root.ext4"),
        format: DiskFormat::Raw,
        access: DiskAccess::Ephemeral,
        root: true,
        backing: Vec::new(),
        was: None,
        limits: None,
    };
    MachineConfig {
        cpus: CpuConfig { count: 1, threads_per_core: 1 },
        memory_mib: 256,
        kernel: KernelConfig {
            path: bundle.join("vmlinux"),
            initrd: None,
            cmdline: "quiet".into(),
            identity_options: String::new(),
            protocol: BootProtocol::Auto,
            software_kvm_aware: true,
        },
        disks: vec![root],
        disk_slots: 3,
        vsock: Some(VsockConfig { cid: 3, seed: None }),
        net: None,
        identity: None,
        cpu_budget: None,
        disk_limits: None,
    }
}

impl Machine {
    pub fn start(wisp: &Wisp, dir: tempfile::TempDir, config: &MachineConfig) -> Machine {
        Machine::start_or_restore(wisp, dir, config, None)
    }

    pub fn start_or_restore(
        wisp: &Wisp,
        dir: tempfile::TempDir,
        config: &MachineConfig,
        restore: Option<&Path>,
    ) -> Machine {
        let mut command = wisp.command(&["vmm", dir.path().to_str().unwrap()]);
        if let Some(saved) = restore {
            command.arg("--restore").arg(saved);
        }
        Machine::of(command, dir, config)
    }

    pub fn start_with_preload(wisp: &Wisp, dir: tempfile::TempDir, config: &MachineConfig, library: &Path) -> Machine {
        let mut command = wisp.command(&["vmm", dir.path().to_str().unwrap()]);
        command.env("LD_PRELOAD", library);
        Machine::of(command, dir, config)
    }

    pub fn start_connected(
        wisp: &Wisp,
        dir: tempfile::TempDir,
        config: &MachineConfig,
        network: UnixStream,
    ) -> Machine {
        let mut command = wisp.command(&["vmm", dir.path().to_str().unwrap()]);
        command.args(["--network-fd", &network.as_raw_fd().to_string()]);
        // SAFETY: fcntl is async-signal-safe, and the closure owns the descriptor until the command is dropped.
        unsafe { command.pre_exec(move || Ok(fcntl_setfd(&network, FdFlags::empty())?)) };
        Machine::of(command, dir, config)
    }

    fn of(mut command: Command, dir: tempfile::TempDir, config: &MachineConfig) -> Machine {
        fs::write(dir.path().join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
        let lock = File::create(dir.path().join("lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("no other VMM uses the directory");
        let (watcher, vmm_watcher) = UnixStream::pair().unwrap();
        let inherited = [lock.as_raw_fd(), vmm_watcher.as_raw_fd()];
        command.args(["--lock-fd", &inherited[0].to_string(), "--watcher-fd", &inherited[1].to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.path().join("vmm.log")).unwrap());
        // SAFETY: fcntl is async-signal-safe, and the descriptors are open until the child has started.
        unsafe {
            command.pre_exec(move || {
                inherited.iter().try_for_each(|fd| Ok(fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?))
            });
        }
        let vmm = command.spawn().unwrap();
        Machine { dir, vmm, control: ControlClient::new(watcher).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn ask(&mut self, request: &ControlRequest) -> Message {
        self.control.send(request).unwrap();
        self.control.receive(Some(DEADLINE)).unwrap()
    }

    pub fn status(&mut self) -> VmmStatus {
        match self.ask(&ControlRequest::Status) {
            Message::Status(status) => *status,
            other => panic!("not a status: {other:?}"),
        }
    }

    pub fn wait_until_ready(&mut self) {
        let message = self.control.receive(Some(DEADLINE)).unwrap();
        assert_eq!(message, Message::Ready, "{}", fs::read_to_string(self.path("vmm.log")).unwrap());
    }

    pub fn shell(&self, script: &str) -> String {
        let _one = COMMAND.lock().unwrap_or_else(PoisonError::into_inner);
        let agent = Agent::connect(&self.path("vmm/vsock.sock"), DEADLINE).unwrap();
        let (input, mut output) = (File::open("/dev/null").unwrap(), tempfile::tempfile().unwrap());
        let argv = ["sh", "-ec", script].map(Into::into).to_vec();
        let request = ExecRequest { argv, env: vec![], cwd: None, terminal: None, user: None };
        let streams = Streams { input: input.as_fd(), output: output.as_fd(), error: output.as_fd() };
        let status = agent.exec(request, streams).unwrap();
        std::io::Seek::rewind(&mut output).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(format!("{status:?}"), "Exited(0)", "{script}: {text}");
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}
