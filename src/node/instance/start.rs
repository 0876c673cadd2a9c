//! Start plans: everything that a VMM needs to run an instance's guest. Instances and ephemeral instances start by the
//! same steps, in `StartPlan::spawn`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;

use super::dir::{InstanceDir, LINK};
use super::error::{Failure, MachineError};
use super::handle::MachineHandle;
use crate::guest::Seed;
use crate::home::write_private;
use crate::passt::{self, PasstConfig};
use crate::vmm_process::{self, Inherited, StartFrom};
use machine::config::{MachineConfig, NetConfig};
use machine::control::ControlClient;
use machine::end_record::EndRecord;
use machine::kept_balance::KeptBalance;
use machine::launch::{Launcher, Restore};
use machine::network::NetstackConfig;

const SEED: &str = "seed";
const PASST_LOG: &str = "passt.log";

#[derive(Debug)]
pub struct StartPlan {
    pub dir: InstanceDir,
    /// The lock of `dir`. The supervisor and the VMM inherit it.
    pub lock: File,
    pub machine: MachineConfig,
    /// Configuration of the netstack. `None` for a network device without a network.
    pub link: Option<NetstackConfig>,
    pub backend: Backend,
    /// Passed to the guest's agent, if it needs one.
    pub seed: Option<Seed>,
    /// `None` for a cold boot.
    pub restore: Option<Restore>,
    /// Boot without the instance's identity. The guest gets it after it was saved as a template
    /// ([`MachineHandle::personalize`]).
    pub is_template: bool,
    /// Monotonic start time of the user's command.
    pub began_ns: u64,
}

/// The backend of a machine's network device. The netstack is not a backend: it is part of the VMM.
#[derive(Debug)]
pub enum Backend {
    None,
    /// A user-mode network outside a VPC.
    Passt(PasstConfig),
    /// A tap device of a VPC's router.
    Tap(OwnedFd),
}

/// The VMM's connection to the process that starts it.
pub(super) struct Connection {
    pub launcher: Launcher,
    /// This process's end.
    pub near: UnixStream,
    pub console: Option<UnixStream>,
}

impl StartPlan {
    /// Returns the plan of a machine without a network, a seed and a snapshot.
    pub fn new(dir: InstanceDir, lock: File, machine: MachineConfig, began_ns: u64) -> StartPlan {
        let (link, backend, seed) = (None, Backend::None, None);
        StartPlan { dir, lock, machine, link, backend, seed, restore: None, is_template: false, began_ns }
    }

    /// Sets the configuration of the netstack, and adds the network's settings to the kernel command line.
    pub fn set_link(&mut self, mut device: NetConfig, link: NetstackConfig) {
        device.link = Some(self.dir.path().join(LINK));
        self.machine.kernel.identity_options.push_str(&format!(" {}", link.network(device.mac).to_option()));
        self.machine.net = Some(device);
        self.link = Some(link);
    }

    /// Connects the machine to a user-mode network with the addresses of its netstack.
    pub fn set_passt(&mut self, dns: std::net::Ipv4Addr) {
        if let Some(NetstackConfig { address, prefix_length, router, mtu, .. }) = self.link {
            let log = self.dir.path().join(PASST_LOG);
            self.backend = Backend::Passt(PasstConfig { address, prefix_length, router, dns, mtu, log });
        }
    }

    /// Gives the guest a seed, which its agent reads over vsock after the boot or the restore.
    pub fn set_seed(&mut self, seed: Seed) {
        if let Some(vsock) = &mut self.machine.vsock {
            vsock.seed = Some(self.dir.path().join(SEED));
        }
        self.machine.kernel.identity_options.push_str(" wisp.seed");
        self.seed = Some(seed);
    }

    /// Starts the VMM of an instance, which outlives this process.
    pub fn start(self) -> Result<MachineHandle, MachineError> {
        let (near, far) = UnixStream::pair().map_err(|error| self.dir.error(Failure::Spawn(error)))?;
        let connection = Connection { launcher: Launcher::Watcher(far), near, console: None };
        let (machine, mut vmm) = self.spawn(connection)?;
        // Reap the VMM if it exits before this process does, which may be a server.
        std::thread::spawn(move || vmm.wait());
        Ok(machine)
    }

    /// Writes the machine's files and starts its VMM. passt, if it is used, is started after the VMM, so that the VMM
    /// need not wait for it.
    pub(super) fn spawn(self, connection: Connection) -> Result<(MachineHandle, Child), MachineError> {
        let StartPlan { dir, lock, machine, link, backend, seed, restore, is_template, began_ns } = self;
        let from = match &restore {
            Some(restore) => StartFrom::Snapshot(restore),
            None if is_template => StartFrom::TemplateBoot,
            None => StartFrom::Boot,
        };
        if let Some(seed) = seed {
            let path = dir.path().join(SEED);
            write_private(&path, &seed.encode()).map_err(MachineError::file(&path, "write"))?;
        }
        if let Some(link) = link {
            dir.write_link(&link)?;
        }
        dir.write_config(&machine)?;
        let own = dir.vmm_directory();
        let cleared = EndRecord::clear(&own).and_then(|()| KeptBalance::clear(&own));
        cleared.map_err(MachineError::file(dir.path(), "clean up"))?;
        let failed = |failure| dir.error(failure);
        let (network, passt) = match backend {
            Backend::None => (None, None),
            Backend::Tap(tap) => (Some(tap), None),
            Backend::Passt(config) => {
                let (device, passt) = passt::prepare(&config).map_err(Failure::Passt).map_err(failed)?;
                (Some(device), Some(passt))
            }
        };
        let Connection { launcher, near, console } = connection;
        let inherited = Inherited { lock, launcher, console, network };
        let mut child =
            vmm_process::spawn(dir.path(), inherited, from, began_ns).map_err(|error| failed(Failure::Spawn(error)))?;
        if let Some(Err(error)) = passt.map(passt::Prepared::start) {
            vmm_process::kill(dir.path()).map_err(|error| failed(Failure::Spawn(error)))?;
            // The supervisor may not have opened its lock yet, so that it was not found.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(failed(Failure::Passt(error)));
        }
        let client = ControlClient::new(near).map_err(dir.control_error())?;
        Ok((MachineHandle::new(dir, client), child))
    }
}
