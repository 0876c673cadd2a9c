//! The stages in which a machine is built: layout, memory, devices, vCPUs.
//!
//! [`Machine::boot`](super::machine::Machine::boot) and [`Machine::restore`](super::machine::Machine::restore) call
//! them in this order.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::boot::{self, BootState, cmdline};
use super::console_socket::ConsoleSocket;
use super::cpu::{cpuid, emulation};
use super::devices::console::Console;
use super::devices::serial::SerialState;
use super::error::Error;
use super::eventfd::new_eventfd;
use super::kvm::VirtualMachine;
use super::memory::GuestMemory;
use super::resume_message::ResumeMessage;
use super::snapshot::processor::{CpuIdentity, Processor, tsc_to_set};
use super::snapshot::{MachineState, SnapshotError};
use super::virtio::block::Ring;
use super::virtio::mmio::MmioResources;
use super::virtio::vsock::Vsock;
use super::wiring::{ConnectedDevices, DeviceManager, PcParts, PcState, VirtioParts, assign_resources, connect};
use machine::config::{CpuConfig, DiskConfig, MachineConfig, NetConfig};
use machine::end::{EndReceiver, EndSender, end_channel};
use machine::files::{CONSOLE_LOG, CONSOLE_SOCKET, VSOCK_SOCKET};
use machine::passed_files::FdTable;
use machine::timeline::{Mark, Timeline};
use netstack::NetstackConfig;
use netstack::broker::BrokerClient;

/// Host resources of the devices.
#[derive(Debug)]
pub struct DeviceInputs {
    /// A terminal to attach to the serial port.
    pub console: Option<UnixStream>,
    /// The network device's backend: a tap device, or the stream socket of a user-mode network. `None`: disconnected.
    pub network: Option<OwnedFd>,
    pub broker: BrokerClient,
    /// io_uring instances for the disks: one for each disk slot, or as many as the host allows.
    pub rings: Vec<Ring>,
    pub files: FdTable,
}

/// The virtio devices of a machine, and their addresses and interrupts.
pub(super) struct Layout<'a> {
    /// The disk of each disk slot.
    disks: Vec<Option<&'a DiskConfig>>,
    net: Option<&'a NetConfig>,
    pub resources: Vec<MmioResources>,
}

impl<'a> Layout<'a> {
    /// Places the disks in the order of `config`.
    pub fn of_config(config: &'a MachineConfig) -> Result<Layout<'a>, Error> {
        let disks = (0..config.all_disk_slots()).map(|index| config.disks.get(index)).collect();
        Layout::new(config, disks, config.net.as_ref())
    }

    /// Places the disks as in the snapshot. Fails if the snapshot's disks differ from those of `config`.
    pub fn of_snapshot(config: &'a MachineConfig, state: &MachineState) -> Result<Layout<'a>, Error> {
        let was = |disk: &DiskConfig, id: &String| disk.was.as_ref().unwrap_or(&disk.id) == id;
        let place = |id: &Option<String>| {
            let Some(id) = id else { return Ok(None) };
            config.disks.iter().find(|disk| was(disk, id)).map(Some).ok_or_else(|| SnapshotError::NoDisk(id.clone()))
        };
        let disks = state.disks.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        if let Some(disk) = config.disks.iter().find(|disk| !disks.iter().flatten().any(|placed| placed.id == disk.id))
        {
            return Err(SnapshotError::NewDisk(disk.id.clone()).into());
        }
        // A machine that was saved without a network device is restored without one.
        let has_net = state.virtio.len() > device_count(config, disks.len());
        Layout::new(config, disks, config.net.as_ref().filter(|_| has_net))
    }

    fn new(
        config: &MachineConfig,
        disks: Vec<Option<&'a DiskConfig>>,
        net: Option<&'a NetConfig>,
    ) -> Result<Layout<'a>, Error> {
        let count = device_count(config, disks.len()) + usize::from(net.is_some());
        Ok(Layout { disks, net, resources: assign_resources(count)? })
    }
}

/// Returns the number of virtio devices without the network device: disk slots, entropy, vsock and balloon.
fn device_count(config: &MachineConfig, slots: usize) -> usize {
    slots + 1 + usize::from(config.vsock.is_some()) + 1
}

/// Starts a thread that loads the kernel in parallel with the creation of devices, which takes about as long.
pub(super) fn spawn_loader(
    memory: &GuestMemory,
    config: &MachineConfig,
    resources: &[MmioResources],
) -> Result<JoinHandle<Result<BootState, Error>>, Error> {
    let (memory, config, resources) = (memory.clone(), config.clone(), resources.to_vec());
    let load = move || {
        let cmdline = cmdline::assemble(&config, &resources, emulation::is_software_kvm());
        log::info!("kernel command line: {cmdline}");
        Ok(boot::load(&memory, &config, &resources, &cmdline)?)
    };
    thread::Builder::new().name("loader".into()).spawn(load).map_err(Error::host("start a thread"))
}

/// Reads a snapshot's state, and checks that its vCPU configuration and memory size match `config`.
pub(super) fn saved_state(dir: &Path, config: &MachineConfig) -> Result<MachineState, Error> {
    let state = MachineState::read(dir)?;
    let describe = |cpus: CpuConfig, memory_mib| format!("{} vCPUs and {memory_mib} MiB of memory", cpus.count);
    let count = config.cpus.count as usize;
    if (state.cpus, state.memory_mib) != (config.cpus, config.memory_mib)
        || [state.vcpus.len(), state.identity.cpuid.len()] != [count; 2]
    {
        let (saved, wanted) = (describe(state.cpus, state.memory_mib), describe(config.cpus, config.memory_mib));
        return Err(SnapshotError::OtherMachine { saved, wanted }.into());
    }
    Ok(state)
}

/// A machine's devices, connected to buses and to KVM.
pub(super) struct WiredDevices {
    pub connected: ConnectedDevices,
    pub console_socket: ConsoleSocket,
    pub end_sender: EndSender,
    pub ends: EndReceiver,
    /// Notified when the guest's agent is ready.
    pub ready: EventFd,
}

/// The inputs of [`WiredDevices`] that a cold boot and a restore have in common.
pub(super) struct DeviceBuilder<'a> {
    pub config: &'a MachineConfig,
    pub dir: &'a Path,
    pub layout: Layout<'a>,
    pub memory: &'a GuestMemory,
    pub vm: &'a VmFd,
    pub timeline: &'a Arc<Timeline>,
    pub link: Option<NetstackConfig>,
}

impl DeviceBuilder<'_> {
    /// Creates the devices of a machine that boots. `first_ready` is the mark of its agent's first ready report.
    pub fn boot(self, inputs: DeviceInputs, first_ready: Mark) -> Result<WiredDevices, Error> {
        self.wire(inputs, PcState { serial: &SerialState::default(), generation: None, first_ready })
    }

    /// Creates the devices of a restored machine. Those whose state is restored later are in the reset state.
    pub fn restore(
        self,
        inputs: DeviceInputs,
        state: &MachineState,
        message: ResumeMessage,
    ) -> Result<WiredDevices, Error> {
        let pc = PcState { serial: &state.serial, generation: state.generation, first_ready: Mark::AgentReady };
        let wired = self.wire(inputs, pc)?;
        wired.connected.devices.await_resume(message)?;
        Ok(wired)
    }

    fn wire(self, inputs: DeviceInputs, state: PcState<'_>) -> Result<WiredDevices, Error> {
        let DeviceBuilder { config, dir, layout, memory, vm, timeline, link } = self;
        let (end_sender, ends) = end_channel().map_err(Error::host("create an eventfd"))?;
        let ready = new_eventfd()?;
        let console = new_console(dir, timeline)?;
        let mut console_socket = ConsoleSocket::bind(&dir.join(CONSOLE_SOCKET), console.clone())?;
        if let Some(terminal) = inputs.console {
            console_socket.attach(terminal).map_err(Error::host("attach the terminal to the console"))?;
        }
        let pc = PcParts { timeline, ends: &end_sender, ready: &ready, console: &console, state };
        let mut manager = DeviceManager::new(vm, memory, layout.resources, pc)?;
        let BrokerClient { link: link_sockets, vsock: connector } = inputs.broker;
        let path = dir.join(VSOCK_SOCKET);
        let vsock = config.vsock.as_ref().map(|vsock| Vsock::new(vsock, &path, connector)).transpose()?;
        let net = layout.net.map(|net| connect(net, inputs.network, link, link_sockets)).transpose()?;
        let (rings, files, disk_limits) = (inputs.rings, inputs.files, config.disk_limits);
        manager.add_virtio_devices(VirtioParts { disks: &layout.disks, rings, files, disk_limits, vsock, net, dir })?;
        Ok(WiredDevices { connected: manager.finish(), console_socket, end_sender, ends, ready })
    }
}

pub(super) fn read_link(config: &MachineConfig) -> Result<Option<NetstackConfig>, Error> {
    let Some(path) = config.net.as_ref().and_then(|net| net.link.as_ref()) else { return Ok(None) };
    NetstackConfig::read(path).map(Some).map_err(|source| Error::File { path: path.clone(), source })
}

fn new_console(dir: &Path, timeline: &Arc<Timeline>) -> Result<Console, Error> {
    let path = dir.join(CONSOLE_LOG);
    Console::new(Some(&path), Arc::clone(timeline)).map_err(|source| Error::File { path, source })
}

pub(super) struct Vcpus {
    pub fds: Vec<VcpuFd>,
    pub identity: CpuIdentity,
}

impl Vcpus {
    /// Creates vCPUs in the reset state, with the features that KVM supports.
    pub fn boot(machine: &VirtualMachine, cpus: CpuConfig) -> Result<Vcpus, Error> {
        let cpuid = |id| cpuid::for_vcpu(&machine.supported, id, cpus).as_slice().to_vec();
        let cpuid = (0..cpus.count).map(cpuid).collect();
        Vcpus::create(machine, cpuid, None)
    }

    /// Creates vCPUs with their saved CPUID and, if KVM can scale it, their saved TSC frequency. Restores their state.
    pub fn restore(machine: &VirtualMachine, state: &MachineState) -> Result<Vcpus, Error> {
        let vcpus = Vcpus::create(machine, state.identity.cpuid.clone(), state.identity.tsc_khz)?;
        state.vcpus.iter().zip(&vcpus.fds).try_for_each(|(saved, vcpu)| saved.restore(vcpu))?;
        Ok(vcpus)
    }

    fn create(
        VirtualMachine { kvm, vm, .. }: &VirtualMachine,
        cpuid: Vec<Vec<kvm_cpuid_entry2>>,
        tsc_khz: Option<u32>,
    ) -> Result<Vcpus, Error> {
        let mut fds = Vec::with_capacity(cpuid.len());
        for (id, entries) in (0..).zip(&cpuid) {
            let vcpu = vm.create_vcpu(id).map_err(Error::kvm("create a vCPU"))?;
            let entries = CpuId::from_entries(entries)
                .map_err(|_| SnapshotError::Device(format!("it has too many CPUID entries ({})", entries.len())))?;
            vcpu.set_cpuid2(&entries).map_err(Error::kvm("set a vCPU's CPUID"))?;
            fds.push(vcpu);
        }
        let here = fds.first().and_then(|vcpu| vcpu.get_tsc_khz().ok());
        let to_set = tsc_to_set(tsc_khz, here, kvm.check_extension(Cap::TscControl)).map_err(SnapshotError::Device)?;
        if let Some(khz) = to_set {
            let set = |vcpu: &VcpuFd| vcpu.set_tsc_khz(khz).map_err(Error::kvm("set a vCPU's TSC frequency"));
            fds.iter().try_for_each(set)?;
        }
        let identity = CpuIdentity { processor: Processor::of_host(Some(kvm)), tsc_khz: tsc_khz.or(here), cpuid };
        Ok(Vcpus { fds, identity })
    }
}
