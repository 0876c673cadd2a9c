//! Assembles a machine from its parts and runs it. Start reading the VMM here.
//!
//! [`Machine::new`] validates the configuration, then creates memory, devices and vCPUs, while a thread loads the
//! kernel. [`Machine::run`] starts the vCPUs and runs the event loop until there is an [`End`].

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::boot::{self, BootState, cmdline};
use super::console_socket::ConsoleSocket;
use super::cpu::gate::Gate;
use super::cpu::quota::Quota;
use super::cpu::time::CpuTime;
use super::cpu::vcpu::{VcpuContext, VcpuHandle, install_kick_handler};
use super::cpu::xstate::Xstate;
use super::cpu::{cpuid, emulation, registers, state};
use super::devices::console::Console;
use super::error::Error;
use super::event_loop::EventLoop;
use super::fault::GuestFaults;
use super::freeze::{self, Freezer};
use super::kvm::{PendingVm, VirtualMachine};
use super::memory::{self, GuestMemory};
use super::resume_message::ResumeMessage;
use super::sandbox;
use super::snapshot::origin::Origin;
use super::snapshot::processor::{CpuIdentity, Processor, tsc_to_set};
use super::snapshot::{self, MachineState, SnapshotError};
use super::usage_recorder::Recorder;
use super::virtio::block::Ring;
use super::virtio::mmio::MmioResources;
use super::virtio::net::NetControl;
use super::virtio::transport::TransportState;
use super::virtio::vsock::Vsock;
use super::wiring::{
    ConnectedDevices, DeviceManager, Devices, PcParts, VirtioParts, assign_resources, connect, new_eventfd,
};
use machine::config::{CpuConfig, DiskConfig, MachineConfig};
use machine::control::{ControlServer, GuestFaultRecord, SOCKET, VmmStatus};
use machine::end::{End, EndReceiver, end_channel};
use machine::files::{CONSOLE_LOG, CONSOLE_SOCKET, VSOCK_SOCKET};
use machine::kept_balance::KeptBalance;
use machine::launch::{Launcher, Restore};
use machine::passed_files::FdTable;
use machine::timeline::{ExitCounters, Mark, Timeline};
use machine::usage::{Clock, SampleTime};
use netstack::NetstackConfig;
use netstack::broker::BrokerClient;

/// Host resources that the caller opens for a machine.
#[derive(Debug)]
pub struct VmmInputs {
    /// Directory for the sockets, console log, overlays and snapshots.
    pub dir: PathBuf,
    pub kvm: PendingVm,
    /// The VMM's process ID outside the sandbox's PID namespace.
    pub pid: u32,
    pub launcher: Launcher,
    /// A terminal to attach to the serial port.
    pub console: Option<UnixStream>,
    /// The start time of the user's command, in nanoseconds of `CLOCK_MONOTONIC`.
    pub process_start_ns: Option<u64>,
    /// The network device's backend: a tap device, or the stream socket of a user-mode network. `None`: disconnected.
    pub network: Option<OwnedFd>,
    pub broker: BrokerClient,
    pub restore: Option<Restore>,
    /// io_uring instances for the disks: one for each disk slot, or as many as the host allows.
    pub rings: Vec<Ring>,
    pub files: FdTable,
}

#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    pid: u32,
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    context: VcpuContext,
    devices: Devices,
    ends: EndReceiver,
    ready: EventFd,
    control: ControlServer,
    launcher: Launcher,
    console_socket: ConsoleSocket,
    restore: Option<Restore>,
    /// The saved state of the virtio devices; empty for a cold boot.
    virtio: Vec<TransportState>,
    origin: Option<Origin>,
    dir: PathBuf,
}

impl Machine {
    pub fn new(config: MachineConfig, inputs: VmmInputs) -> Result<Machine, Error> {
        let timeline = Arc::new(Timeline::default());
        timeline.mark(Mark::VmmStart);
        if let Some(start) = inputs.process_start_ns {
            timeline.mark_at(Mark::ProcessStart, start);
        }
        config.validate()?;
        install_kick_handler()?;
        let control = ControlServer::bind(&inputs.dir.join(SOCKET))?;

        let saved = inputs.restore.as_ref().map(|from| saved_state(&from.dir, &config)).transpose()?;
        let origin = match (&saved, &inputs.restore) {
            (Some(state), Some(from)) => Some(Origin::open(&from.dir, &inputs.dir, state)?),
            _ => None,
        };
        let memory = match &origin {
            Some(origin) => origin.map(config.memory_mib)?,
            None => memory::allocate(config.memory_mib)?,
        };
        let disks = place_disks(&config, saved.as_ref())?;
        // A machine that was saved without a network device is restored without one.
        let has_net = |state: &MachineState| state.virtio.len() > disks.len() + 1 + usize::from(config.vsock.is_some());
        let net = config.net.as_ref().filter(|_| saved.as_ref().is_none_or(has_net));
        let count = disks.len() + 1 + usize::from(config.vsock.is_some()) + usize::from(net.is_some());
        let resources = assign_resources(count)?;
        let software_kvm = emulation::is_software_kvm();
        // A thread loads the kernel in parallel with the independent steps below, which take about as long.
        let loading = match &saved {
            Some(_) => None,
            None => Some(spawn_loader(&memory, &config, &resources, software_kvm)?),
        };

        let machine = inputs.kvm.finish()?;
        machine.register(&memory)?;
        let VirtualMachine { kvm, vm } = machine;
        if let (Some(state), Some(from)) = (&saved, &inputs.restore) {
            state.check_host(&from.dir, &kvm)?;
        }
        timeline.mark(Mark::MemoryReady);
        let link = read_link(&config)?;
        let (end_sender, ends) = end_channel().map_err(Error::host("create an eventfd"))?;
        let ready = new_eventfd()?;
        let console = new_console(&inputs.dir, &timeline)?;
        let mut console_socket = ConsoleSocket::bind(&inputs.dir.join(CONSOLE_SOCKET), console.clone())?;
        if let Some(terminal) = inputs.console {
            console_socket.attach(terminal).map_err(Error::host("attach the terminal to the console"))?;
        }
        let resume_message = saved
            .as_ref()
            .map(|state| ResumeMessage::of(&config, &memory, state.generation, link.as_ref()))
            .transpose()?;
        let released = resume_message.as_ref().map(|message| message.release.try_clone()).transpose();
        let released = released.map_err(Error::host("create an eventfd"))?;
        let saved_ports = saved.as_ref().zip(resume_message);
        let pc =
            PcParts { timeline: &timeline, ends: &end_sender, ready: &ready, console: &console, saved: saved_ports };
        let mut manager = DeviceManager::new(&vm, &memory, resources, pc)?;
        let BrokerClient { link: link_sockets, vsock: connector } = inputs.broker;
        let vsock_path = inputs.dir.join(VSOCK_SOCKET);
        let vsock =
            config.vsock.as_ref().map(|vsock| Vsock::new(vsock, &vsock_path, connector, released)).transpose()?;
        let net = net.map(|net| connect(net, inputs.network, link, link_sockets)).transpose()?;
        let (rings, files, disk_limits) = (inputs.rings, inputs.files, config.disk_limits);
        manager.add_virtio_devices(VirtioParts {
            disks: &disks,
            rings,
            files,
            disk_limits,
            vsock,
            net,
            dir: &inputs.dir,
        })?;
        let ConnectedDevices { ports, mmio, mut devices } = manager.finish();
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("list its supported CPU features"))?;
        let (vcpus, identity) = create_vcpus(&kvm, &vm, &supported, &config, saved.as_ref())?;
        if let Some(loading) = loading {
            let boot = loading.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            timeline.mark(Mark::KernelLoaded);
            vcpus.iter().try_for_each(registers::set_common)?;
            registers::set_boot(&vcpus[0], &memory, &boot)?;
        }
        if let Some(state) = &saved {
            state.vcpus.iter().zip(&vcpus).try_for_each(|(saved, vcpu)| saved.restore(vcpu))?;
            freeze::restore(&vm, &devices, state)?;
        }

        let exits = Arc::new(ExitCounters::default());
        let cpu_time = CpuTime::new(config.cpus.count, devices.clocks.clone());
        let gate = Gate::new(config.cpus.count);
        let quota = quota(&config, &inputs.dir);
        let saved_msrs = state::saved_msrs(&kvm)?;
        let xstate = Xstate::of_host(&supported).filter(|_| software_kvm);
        let xstate_faults = Arc::new(GuestFaults::new("xstate"));
        devices.faults.push(("xstate".into(), Arc::clone(&xstate_faults)));
        let context = VcpuContext {
            ports,
            mmio,
            memory,
            software_kvm,
            xstate,
            xstate_faults,
            exits,
            cpu_time,
            quota,
            timeline,
            ends: end_sender,
            gate,
            saved_msrs,
            identity,
        };
        let launcher = inputs.launcher;
        Ok(Machine {
            config,
            pid: inputs.pid,
            vm,
            vcpus,
            context,
            devices,
            ends,
            ready,
            control,
            launcher,
            console_socket,
            restore: inputs.restore,
            virtio: saved.map(|state| state.virtio).unwrap_or_default(),
            origin,
            dir: inputs.dir,
        })
    }

    /// Runs the guest. Once all vCPUs have stopped and the disks are flushed, calls `conclude`, then tells subscribers.
    pub fn run(self, conclude: impl FnOnce(&End, &VmmStatus)) -> Result<End, Error> {
        let context = Arc::new(self.context);
        // Nothing reads an ephemeral machine's usage after its end, so it is not recorded.
        let recorder = match self.launcher {
            Launcher::Owner(_) => None,
            _ => Recorder::new(&self.dir, self.config.cpus.count),
        };
        let (devices, ends, ready) = (&self.devices, &self.ends, &self.ready);
        let event_loop =
            EventLoop::new(self.control, self.launcher, self.console_socket, devices, ends, ready, recorder)?;
        sandbox::seal()?;
        if let Some(from) = &self.restore {
            freeze::restore_virtio(devices, &self.virtio, &from.dir)?;
            context.timeline.mark(Mark::StateRestored);
        }
        let spawn = |(id, fd)| VcpuHandle::spawn(id, fd, Arc::clone(&context));
        if let Some(Restore { dir, once: true }) = &self.restore {
            snapshot::consume(dir)?;
        }
        let mut running = Running { context: Arc::clone(&context), vcpus: Vec::new(), devices: &self.devices };
        for vcpu in (0..).zip(self.vcpus) {
            running.vcpus.push(spawn(vcpu)?);
        }
        let clock = Clock::start();
        let status = || VmmStatus { moment: clock.now(), ..status(&self.config, self.pid, &context, &self.devices) };
        let freezer = Freezer {
            vm: &self.vm,
            config: &self.config,
            context: &context,
            vcpus: &running.vcpus,
            devices: &self.devices,
            origin: self.origin.as_ref(),
        };
        let (end, mut control) = event_loop.run(&status, &freezer);
        let last_status = status();
        drop(running);
        keep_balance(&context, &self.dir);
        log::info!("{end}");
        conclude(&end, &last_status);
        control.broadcast(&machine::control::Message::Ended { end: end.clone(), status: Box::new(last_status) });
        Ok(end)
    }
}

/// A machine with running vCPUs. Dropping it stops the vCPUs, then shuts down the devices.
struct Running<'a> {
    context: Arc<VcpuContext>,
    vcpus: Vec<VcpuHandle>,
    devices: &'a Devices,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.context.gate.stop();
        self.vcpus.iter().for_each(VcpuHandle::kick);
        self.vcpus.drain(..).for_each(VcpuHandle::join);
        for device in &self.devices.virtio {
            device.lock().unwrap_or_else(PoisonError::into_inner).shut_down();
        }
    }
}

/// Reads a snapshot's state, and checks that its vCPU configuration and memory size match `config`.
fn saved_state(dir: &Path, config: &MachineConfig) -> Result<MachineState, Error> {
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

fn spawn_loader(
    memory: &GuestMemory,
    config: &MachineConfig,
    devices: &[MmioResources],
    software_kvm: bool,
) -> Result<JoinHandle<Result<BootState, Error>>, Error> {
    let (memory, config, devices) = (memory.clone(), config.clone(), devices.to_vec());
    let load = move || {
        let cmdline = cmdline::assemble(&config, &devices, software_kvm);
        log::info!("kernel command line: {cmdline}");
        Ok(boot::load(&memory, &config, &devices, &cmdline)?)
    };
    thread::Builder::new().name("loader".into()).spawn(load).map_err(Error::host("start a thread"))
}

/// Creates the vCPUs in the reset state. Restored vCPUs get their saved CPUID and, if KVM can scale it, their saved TSC
/// frequency.
fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    supported: &CpuId,
    config: &MachineConfig,
    saved: Option<&MachineState>,
) -> Result<(Vec<VcpuFd>, CpuIdentity), Error> {
    let saved = saved.map(|state| &state.identity);
    let new = |id| cpuid::for_vcpu(supported, id, config.cpus).as_slice().to_vec();
    let cpuid = saved.map_or_else(|| (0..config.cpus.count).map(new).collect(), |saved| saved.cpuid.clone());
    let mut vcpus = Vec::with_capacity(cpuid.len());
    for (id, entries) in (0..).zip(&cpuid) {
        let vcpu = vm.create_vcpu(id).map_err(Error::kvm("create a vCPU"))?;
        let entries = CpuId::from_entries(entries)
            .map_err(|_| SnapshotError::Device(format!("it has too many CPUID entries ({})", entries.len())))?;
        vcpu.set_cpuid2(&entries).map_err(Error::kvm("set a vCPU's CPUID"))?;
        vcpus.push(vcpu);
    }
    let here = vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok());
    let tsc_khz = saved.and_then(|saved| saved.tsc_khz);
    let to_set = tsc_to_set(tsc_khz, here, kvm.check_extension(Cap::TscControl)).map_err(SnapshotError::Device)?;
    if let Some(khz) = to_set {
        let set = |vcpu: &VcpuFd| vcpu.set_tsc_khz(khz).map_err(Error::kvm("set a vCPU's TSC frequency"));
        vcpus.iter().try_for_each(set)?;
    }
    let identity = CpuIdentity { processor: Processor::of_host(Some(kvm)), tsc_khz: tsc_khz.or(here), cpuid };
    Ok((vcpus, identity))
}

/// Returns the disk for each slot: in the order of `config` for a cold boot, or as in the snapshot. Fails if the
/// snapshot's disks differ from those of `config`.
fn place_disks<'a>(
    config: &'a MachineConfig,
    saved: Option<&MachineState>,
) -> Result<Vec<Option<&'a DiskConfig>>, Error> {
    let Some(state) = saved else {
        return Ok((0..config.all_disk_slots()).map(|index| config.disks.get(index)).collect());
    };
    let was = |disk: &DiskConfig, id: &String| disk.was.as_ref().unwrap_or(&disk.id) == id;
    let place = |id: &Option<String>| {
        let Some(id) = id else { return Ok(None) };
        config.disks.iter().find(|disk| was(disk, id)).map(Some).ok_or_else(|| SnapshotError::NoDisk(id.clone()))
    };
    let places = state.disks.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    match config.disks.iter().find(|disk| !places.iter().flatten().any(|placed| placed.id == disk.id)) {
        Some(disk) => Err(SnapshotError::NewDisk(disk.id.clone()).into()),
        None => Ok(places),
    }
}

fn read_link(config: &MachineConfig) -> Result<Option<NetstackConfig>, Error> {
    let Some(path) = config.net.as_ref().and_then(|net| net.link.as_ref()) else { return Ok(None) };
    NetstackConfig::read(path).map(Some).map_err(|source| Error::File { path: path.clone(), source })
}

fn new_console(dir: &Path, timeline: &Arc<Timeline>) -> Result<Console, Error> {
    let path = dir.join(CONSOLE_LOG);
    Console::new(Some(&path), Arc::clone(timeline)).map_err(|source| Error::File { path, source })
}

/// Starts with the balance that the machine's previous run saved, if any.
fn quota(config: &MachineConfig, dir: &Path) -> Option<Quota> {
    let mut budget = config.cpu_budget?;
    match KeptBalance::read(dir) {
        Ok(kept) => budget.balance = kept.map_or(budget.balance, |kept| kept.balance),
        Err(error) => log::warn!("cannot read the saved CPU credit balance: {error}"),
    }
    Some(Quota::new(budget, config.cpus.count))
}

fn keep_balance(context: &VcpuContext, dir: &Path) {
    let Some(record) = context.cpu_budget() else { return };
    if let Err(error) = KeptBalance::now(record.budget.balance).write(dir) {
        log::error!("cannot save the CPU credit balance: {error}");
    }
}

fn status(config: &MachineConfig, pid: u32, context: &VcpuContext, devices: &Devices) -> VmmStatus {
    let guest = memory::resident_bytes(&context.memory).unwrap_or(0);
    let faults = devices.faults.iter().filter(|(_, faults)| faults.count() > 0);
    VmmStatus {
        pid,
        moment: SampleTime::default(),
        sandbox: sandbox::record(),
        vcpus: config.cpus.count,
        memory_mib: config.memory_mib,
        software_kvm: context.software_kvm,
        timeline: context.timeline.record(),
        exits: context.exits.record(),
        cpu_time_ns: context.cpu_time.total_ns(),
        cpu_budget: context.cpu_budget(),
        disks: devices.disks.records(),
        net: devices.net.as_ref().map(NetControl::record),
        net_limits: config.net.as_ref().and_then(|net| net.limits),
        disk_limits: config.disk_limits,
        link_problems: devices.net.as_ref().map(NetControl::problems).unwrap_or_default(),
        guest_faults: faults
            .map(|(device, faults)| GuestFaultRecord { device: device.clone(), count: faults.count() })
            .collect(),
        guest_resident_bytes: guest,
        vmm_resident_bytes: memory::process_resident_bytes().saturating_sub(guest),
    }
}
