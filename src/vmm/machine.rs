//! A machine, from its parts: read top-down, this is the room's list of contents.
//!
//! [`Machine::new`] checks the configuration, opens KVM, lays out memory, loads the kernel, wires the devices and
//! creates the vCPUs, in that order; nothing of the guest runs before all of it has succeeded. [`Machine::run`] starts
//! the vCPUs and hands the process to the [`monitor`](super::monitor) until there is an [`End`].

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use wisp_agent::network::Network;
use wisp_agent::resumed::{RESUMED_PORT, RESUMED_PORTS, Resumed};
use wisp_agent::seed::Seed;

use super::boot::{self, BootState, cmdline};
use super::bus::{Bus, SharedDevice};
use super::config::{CpuConfig, DiskConfig, MachineConfig, NetConfig};
use super::console_socket::{self, ConsoleSocket};
use super::control::{ControlServer, GuestFaultRecord, SOCKET, Status};
use super::cpu::gate::Gate;
use super::cpu::time::CpuTime;
use super::cpu::vcpu::{VcpuContext, VcpuHandle, install_kick_handler};
use super::cpu::xstate::Xstate;
use super::cpu::{cpuid, emulation, registers, state};
use super::devices::acpi_pm::{self, AcpiPm};
use super::devices::boot_timer::BootTimer;
use super::devices::console::{self, Console};
use super::devices::generation::{self, Generation};
use super::devices::i8042::{self, I8042};
use super::devices::pvpanic::{self, Pvpanic};
use super::devices::resumed::ResumedPorts;
use super::devices::rtc::{self, Rtc};
use super::devices::serial::{self, Serial};
use super::disk_slots::{DiskSlot, DiskSlots};
use super::end::{End, EndReceiver, EndSender, end_channel};
use super::error::Error;
use super::fault::GuestFaults;
use super::freeze::{self, Freezer};
use super::irq::IrqLine;
use super::link::LinkConfig;
use super::memory::{self, GuestMemory, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START};
use super::monitor::Monitor;
use super::snapshot::origin::Origin;
use super::snapshot::{self, MachineState, SnapshotError};
use super::timeline::{ExitCounters, Mark, Timeline};
use super::virtio::VirtioDevice;
use super::virtio::block::{Block, Disk, DiskBay};
use super::virtio::mmio::{MmioTransport, Slot};
use super::virtio::net::{Backend, Net, NetControl};
use super::virtio::register;
use super::virtio::rng::Rng;
use super::virtio::vsock::Vsock;

/// The keyboard's interrupt line.
const KEYBOARD_IRQ: u32 = 1;
/// Lines for virtio devices: what the PC's own devices leave of the I/O APIC's 24 pins (0 timer, 1 keyboard,
/// 2 cascade, 4 serial port, 8 clock, 9 ACPI, 13 coprocessor).
const VIRTIO_IRQS: [u32; 16] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// What KVM must be able to do.
const CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::Irqchip, "an interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Pit2, "a timer (KVM_CAP_PIT2)"),
    (Cap::Irqfd, "interrupts through eventfds (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications through eventfds (KVM_CAP_IOEVENTFD)"),
    (Cap::UserMemory, "guest memory from user space (KVM_CAP_USER_MEMORY)"),
    (Cap::ImmediateExit, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::ExtCpuid, "CPUID settings (KVM_CAP_EXT_CPUID)"),
    (Cap::SetTssAddr, "a place for its task state (KVM_CAP_SET_TSS_ADDR)"),
];

/// What a machine needs of the process that it runs in.
#[derive(Debug)]
pub struct Surroundings {
    /// The machine's own folder: its sockets, console log and copy-on-write layers go there.
    pub folder: PathBuf,
    /// The connection of the process that started the machine.
    pub launcher: Launcher,
    /// A terminal for the serial port: gets its output, and what it sends is the port's input.
    pub console: Option<UnixStream>,
    /// When the user's command began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub process_start_ns: Option<u64>,
    /// What the network device is connected to: a tap, or the stream socket of a user-mode network.
    pub network: Option<OwnedFd>,
    /// A saved machine that this one is to go on from.
    pub restore: Option<Restore>,
}

/// A saved machine to go on from.
#[derive(Debug, Clone)]
pub struct Restore {
    /// Its folder.
    pub folder: PathBuf,
    /// Whether it is gone once it runs, so that nothing goes on from it twice.
    pub once: bool,
}

/// The connection of the process that started a machine: subscribed from the beginning (see [`super::control`]).
#[derive(Debug)]
pub enum Launcher {
    /// It owns the machine: when it closes, the machine ends.
    Owner(UnixStream),
    /// It only watches; the machine outlives it.
    Watcher(UnixStream),
    /// There is none.
    Nobody,
}

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    /// Dropping it ends the guest for KVM: it stays for as long as anything of the machine does.
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
    origin: Option<Origin>,
}

/// Devices that are talked to from outside the guest.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) serial: Arc<Mutex<Serial>>,
    /// Written when the serial port takes input again.
    pub(super) serial_room: EventFd,
    pub(super) i8042: Arc<Mutex<I8042>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    pub(super) acpi_pm: Arc<Mutex<AcpiPm>>,
    pub(super) generation: Arc<Mutex<Generation>>,
    pub(super) disks: DiskSlots,
    pub(super) net: Option<NetControl>,
    /// Where the network's link is described.
    link: Option<PathBuf>,
    pub(super) virtio: Vec<Arc<Mutex<MmioTransport>>>,
    faults: Vec<(String, Arc<GuestFaults>)>,
}

impl Machine {
    /// Builds the machine that `config` describes.
    pub fn new(config: MachineConfig, surroundings: Surroundings) -> Result<Machine, Error> {
        let timeline = Arc::new(Timeline::default());
        timeline.mark(Mark::MonitorStart);
        if let Some(start) = surroundings.process_start_ns {
            timeline.mark_at(Mark::ProcessStart, start);
        }
        config.validate()?;
        install_kick_handler()?;
        let control = ControlServer::bind(&surroundings.folder.join(SOCKET))?;

        let kvm = open_kvm()?;
        let vm = create_vm(&kvm)?;
        let saved = surroundings.restore.as_ref().map(|from| saved_state(&from.folder, &config)).transpose()?;
        let origin = match (&saved, &surroundings.restore) {
            (Some(state), Some(from)) => Some(Origin::open(&from.folder, state)?),
            _ => None,
        };
        let memory = match &origin {
            Some(origin) => origin.map(config.memory_mib)?,
            None => memory::allocate(config.memory_mib)?,
        };
        register_memory(&vm, &memory)?;
        timeline.mark(Mark::MemoryReady);

        let disks = place_disks(&config, saved.as_ref())?;
        let link = read_link(&config)?;
        // One that was saved when there was no network goes on without.
        let has_net = |state: &MachineState| state.virtio.len() > disks.len() + 1 + usize::from(config.vsock.is_some());
        let net = config.net.as_ref().filter(|_| saved.as_ref().is_none_or(has_net));
        let slots = virtio_slots(disks.len() + 1 + usize::from(config.vsock.is_some()) + usize::from(net.is_some()));
        let software_kvm = emulation::is_software_kvm();
        let start = match &saved {
            Some(state) => Start::Saved(state),
            None => Start::Boot(load_kernel(&memory, &config, &slots, software_kvm)?),
        };
        if saved.is_none() {
            timeline.mark(Mark::KernelLoaded);
        }

        let (end_sender, ends) = end_channel().map_err(Error::host("an eventfd"))?;
        let ready = new_eventfd()?;
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        let console = new_console(&surroundings.folder, &timeline)?;
        let mut console_socket =
            ConsoleSocket::bind(&surroundings.folder.join(console_socket::SOCKET), console.clone())?;
        if let Some(terminal) = surroundings.console {
            console_socket.attach(terminal).map_err(Error::host("a terminal for the console"))?;
        }
        let revival =
            saved.as_ref().map(|state| Revival::of(&config, &memory, state.generation, link.as_ref())).transpose()?;
        let released = revival.as_ref().map(|revival| revival.release.try_clone()).transpose();
        let released = released.map_err(Error::host("an eventfd"))?;
        let saved_ports = saved.as_ref().zip(revival);
        let mut devices = wire_ports(&vm, &mut ports, &timeline, &end_sender, &ready, &console, saved_ports)?;
        let vsock = config.vsock.as_ref().map(|vsock| Vsock::new(vsock, released)).transpose()?;
        let net = net.map(|net| connect(net, surroundings.network, link)).transpose()?;
        devices.link = config.net.as_ref().and_then(|net| net.link.clone());
        let parts = VirtioParts { disks: &disks, vsock, net, slots: &slots };
        wire_virtio(&vm, &mut mmio, &mut devices, &memory, parts, &surroundings.folder)?;
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("tell which CPU features it supports"))?;
        let vcpus = create_vcpus(&vm, &supported, &memory, &config, &start)?;
        if let (Some(state), Some(from)) = (&saved, &surroundings.restore) {
            freeze::restore(&vm, &devices, state)?;
            freeze::restore_virtio(&devices, state, &from.folder)?;
            timeline.mark(Mark::StateRestored);
        }

        let exits = Arc::new(ExitCounters::default());
        let cpu_time = CpuTime::new(config.cpus.count);
        let gate = Gate::new(config.cpus.count);
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
            timeline,
            ends: end_sender,
            gate,
            saved_msrs,
        };
        let launcher = surroundings.launcher;
        Ok(Machine {
            config,
            vm,
            vcpus,
            context,
            devices,
            ends,
            ready,
            control,
            launcher,
            console_socket,
            restore: surroundings.restore,
            origin,
        })
    }

    /// Runs the guest to its end. Then, when no thread of the machine is left and its disks are flushed, `conclude` is
    /// called, and after it those who subscribed are told.
    pub fn run(self, conclude: impl FnOnce(&End, &Status)) -> Result<End, Error> {
        let context = Arc::new(self.context);
        let monitor =
            Monitor::new(self.control, self.launcher, self.console_socket, &self.devices, &self.ends, &self.ready)?;
        let spawn = |(id, fd)| VcpuHandle::spawn(id, fd, Arc::clone(&context));
        if let Some(Restore { folder, once: true }) = &self.restore {
            snapshot::consume(folder)?;
        }
        let mut running = Running { context: Arc::clone(&context), vcpus: Vec::new(), devices: &self.devices };
        for vcpu in (0..).zip(self.vcpus) {
            running.vcpus.push(spawn(vcpu)?);
        }
        let status = || status(&self.config, &context, &self.devices);
        let freezer = Freezer {
            vm: &self.vm,
            config: &self.config,
            context: &context,
            vcpus: &running.vcpus,
            devices: &self.devices,
            origin: self.origin.as_ref(),
        };
        let (end, mut control) = monitor.run(&status, &freezer);
        let last_status = status();
        drop(running);
        log::info!("{end}");
        conclude(&end, &last_status);
        control.broadcast(&super::control::Message::Ended { end: end.clone(), status: Box::new(last_status) });
        Ok(end)
    }
}

/// A machine whose vCPUs run; they are stopped, and then the devices, when it is dropped.
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

/// What the guest of a restored machine has to hear before anybody else talks to it.
#[derive(Debug)]
struct Revival {
    message: Resumed,
    /// Written when it has.
    release: EventFd,
}

impl Revival {
    /// For a guest that has not gone on yet; its random generator gets a generation of its own.
    fn of(
        config: &MachineConfig,
        memory: &GuestMemory,
        generation: Option<u64>,
        link: Option<&LinkConfig>,
    ) -> Result<Revival, Error> {
        let (mut number, mut entropy) = ([0; 8], [0; 32]);
        for bytes in [&mut number[..], &mut entropy] {
            getrandom(bytes, GetRandomFlags::empty()).map_err(|errno| Error::host("random numbers")(errno.into()))?;
        }
        let is_taken = generation::renew(memory, generation, u64::from_le_bytes(number), entropy);
        let path = config.vsock.as_ref().and_then(|vsock| vsock.seed.clone());
        let seed = match path {
            Some(path) => Seed::decode(&std::fs::read(&path).map_err(|source| Error::File { path, source })?),
            None => None,
        };
        let hostname = seed.as_ref().and_then(|seed| seed.hostname.clone());
        // Of what it has from before, or was just told, it need not be told again.
        let has_more = seed.is_some_and(|seed| !seed.public_keys.is_empty() || seed.user_data.is_some());
        let entropy = (!is_taken).then_some(entropy);
        let network = config.net.as_ref().zip(link).map(|(net, link)| network(net, link));
        let message = Resumed { entropy, hostname, seed: has_more, network, ..Resumed::default() };
        Ok(Revival { message, release: new_eventfd()? })
    }
}

/// How a guest's network interface is to be set.
fn network(net: &NetConfig, link: &LinkConfig) -> Network {
    let LinkConfig { address, prefix_length, router, ref dns, mtu, .. } = *link;
    Network { mac: net.mac.0, address, prefix_length, router, dns: dns.clone(), mtu }
}

fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| Error::OpenKvm(error.into()))?;
    match CAPABILITIES.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(Error::Capability(name)),
        None => Ok(kvm),
    }
}

/// Creates the virtual machine with its interrupt controllers and timer, which are KVM's own.
fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let vm = kvm.create_vm().map_err(Error::CreateVm)?;
    let tss = memory::KVM_TSS_ADDRESS as usize;
    vm.set_tss_address(tss).map_err(Error::kvm("place its task state segment"))?;
    vm.create_irq_chip().map_err(Error::kvm("create an interrupt controller"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(Error::kvm("create a timer"))?;
    Ok(vm)
}

fn register_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for the life of the process, with this address and size, and slots do not overlap.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("register guest memory"))?;
    }
    Ok(())
}

/// Where a machine begins.
enum Start<'a> {
    /// At its kernel's entry.
    Boot(BootState),
    /// Where another was saved.
    Saved(&'a MachineState),
}

/// The state of a saved machine, which `config` must be the like of.
fn saved_state(folder: &Path, config: &MachineConfig) -> Result<MachineState, Error> {
    let state = MachineState::read(folder)?;
    let describe = |cpus: CpuConfig, memory_mib| format!("{} vCPUs and {memory_mib} MiB", cpus.count);
    if (state.cpus, state.memory_mib, state.vcpus.len()) != (config.cpus, config.memory_mib, config.cpus.count as usize)
    {
        let (saved, wanted) = (describe(state.cpus, state.memory_mib), describe(config.cpus, config.memory_mib));
        return Err(SnapshotError::OtherMachine { saved, wanted }.into());
    }
    Ok(state)
}

fn load_kernel(
    memory: &GuestMemory,
    config: &MachineConfig,
    slots: &[Slot],
    software_kvm: bool,
) -> Result<BootState, Error> {
    let cmdline = cmdline::assemble(config, slots, software_kvm);
    log::info!("kernel command line: {cmdline}");
    Ok(boot::load(memory, config, slots, &cmdline)?)
}

impl Devices {
    /// Has the network's link go by its configuration as it is now. Returns what of it could not be done; the error is a
    /// sentence.
    pub(super) fn reload_link(&self) -> Result<Vec<String>, String> {
        let (Some(net), Some(path)) = (&self.net, &self.link) else {
            return Err("the machine has no link that could be changed".into());
        };
        let config = LinkConfig::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        Ok(net.reload(config))
    }
}

/// Creates all vCPUs, and sets the first to the kernel's entry, where the others wait for it to start them; or all to where
/// they were saved.
fn create_vcpus(
    vm: &VmFd,
    supported: &CpuId,
    memory: &GuestMemory,
    config: &MachineConfig,
    start: &Start,
) -> Result<Vec<VcpuFd>, Error> {
    let mut vcpus = Vec::with_capacity(config.cpus.count as usize);
    for id in 0..config.cpus.count {
        let vcpu = vm.create_vcpu(id.into()).map_err(Error::kvm("create a vCPU"))?;
        let cpuid = cpuid::for_vcpu(supported, id, config.cpus);
        vcpu.set_cpuid2(&cpuid).map_err(Error::kvm("set a vCPU's CPUID"))?;
        match start {
            Start::Saved(state) => state.vcpus[id as usize].restore(&vcpu)?,
            Start::Boot(boot) => {
                registers::set_common(&vcpu)?;
                if id == 0 {
                    registers::set_boot(&vcpu, memory, boot)?;
                }
            }
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn new_eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("an eventfd"))
}

fn new_console(folder: &Path, timeline: &Arc<Timeline>) -> Result<Console, Error> {
    let path = folder.join(console::LOG);
    Console::new(Some(&path), Arc::clone(timeline)).map_err(|source| Error::File { path, source })
}

/// A new interrupt line that leads to pin `gsi` of the I/O APIC.
fn wire_irq(vm: &VmFd, gsi: u32) -> Result<IrqLine, Error> {
    let line = IrqLine::new().map_err(Error::host("an eventfd"))?;
    vm.register_irqfd(line.eventfd(), gsi).map_err(Error::kvm("route an interrupt line"))?;
    Ok(line)
}

/// Wires the PC's own devices.
fn wire_ports(
    vm: &VmFd,
    bus: &mut Bus,
    timeline: &Arc<Timeline>,
    ends: &EndSender,
    ready: &EventFd,
    console: &Console,
    saved: Option<(&MachineState, Revival)>,
) -> Result<Devices, Error> {
    let serial_room = new_eventfd()?;
    let room = serial_room.try_clone().map_err(Error::host("an eventfd"))?;
    let irq = wire_irq(vm, serial::IRQ)?;
    let serial = match &saved {
        Some((state, _)) => Serial::restored(&state.serial, irq, console.writer(), room)?,
        None => Serial::new(irq, console.writer(), room),
    };
    let serial = Arc::new(Mutex::new(serial));
    let address = saved.as_ref().and_then(|(state, _)| state.generation);
    let i8042 = Arc::new(Mutex::new(I8042::new(ends.clone(), wire_irq(vm, KEYBOARD_IRQ)?)));
    let ready = ready.try_clone().map_err(Error::host("an eventfd"))?;
    let (message, release) = saved.map(|(_, revival)| (revival.message, revival.release)).unzip();
    let resumed = Arc::new(Mutex::new(ResumedPorts::new(message)));
    let noted = Arc::clone(&resumed);
    let on_ready = Box::new(move || {
        noted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Each write adds one to a counter that would take centuries to overflow.
        for event in release.iter().chain([&ready]) {
            let _ = event.write(1);
        }
    });
    let boot_timer = Arc::new(Mutex::new(BootTimer::new(Arc::clone(timeline), on_ready)));
    let rtc = Arc::new(Mutex::new(Rtc::default()));
    let acpi_pm = Arc::new(Mutex::new(AcpiPm::new(ends.clone())));
    let generation = Arc::new(Mutex::new(Generation::restored(address)));
    let devices: [(u16, u64, SharedDevice); 8] = [
        (i8042::PORT, i8042::LENGTH, i8042.clone()),
        (rtc::PORT, rtc::LENGTH, rtc.clone()),
        (serial::PORT, serial::LENGTH, serial.clone()),
        (acpi_pm::PORT, acpi_pm::LENGTH, acpi_pm.clone()),
        (pvpanic::PORT, 1, Arc::new(Mutex::new(Pvpanic::new(ends.clone())))),
        (wisp_agent::BOOT_TIMER_PORT, 1, boot_timer),
        (RESUMED_PORT, RESUMED_PORTS as u64, resumed),
        (generation::PORT, generation::LENGTH, generation.clone()),
    ];
    for (port, length, device) in devices {
        bus.insert(port.into(), length, device).expect("the ports of the PC's devices do not overlap");
    }
    let disks = DiskSlots::default();
    let (net, link, virtio, faults) = (None, None, Vec::new(), Vec::new());
    Ok(Devices { serial, serial_room, i8042, rtc, acpi_pm, generation, disks, net, link, virtio, faults })
}

/// Which disk is in each slot: those of `config` in their order, or where they were when the machine was saved.
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

/// What the services of the network device's link go by, if it has any.
fn read_link(config: &MachineConfig) -> Result<Option<LinkConfig>, Error> {
    let Some(path) = config.net.as_ref().and_then(|net| net.link.as_ref()) else { return Ok(None) };
    LinkConfig::read(path).map(Some).map_err(|source| Error::File { path: path.clone(), source })
}

/// The network device, in front of what it is connected to.
fn connect(config: &NetConfig, network: Option<OwnedFd>, link: Option<LinkConfig>) -> Result<Net, Error> {
    let backend = network.map_or(Ok(Backend::Nobody), Backend::of).map_err(Error::host("the network"))?;
    Net::new(config, backend, link).map_err(Error::host("an eventfd"))
}

/// Where so many virtio devices are, in the order of [`wire_virtio`].
fn virtio_slots(count: usize) -> Vec<Slot> {
    let address = |index: usize| VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_SIZE;
    VIRTIO_IRQS.iter().take(count).enumerate().map(|(index, irq)| Slot { address: address(index), irq: *irq }).collect()
}

/// The virtio devices that depend on the configuration, and where all of them go.
struct VirtioParts<'a> {
    disks: &'a [Option<&'a DiskConfig>],
    vsock: Option<Vsock>,
    net: Option<Net>,
    slots: &'a [Slot],
}

/// Wires the virtio devices: disks in their order, slots without one, the entropy device, vsock, the network device.
fn wire_virtio(
    vm: &VmFd,
    bus: &mut Bus,
    devices: &mut Devices,
    memory: &GuestMemory,
    VirtioParts { disks, vsock, net, slots }: VirtioParts,
    folder: &Path,
) -> Result<(), Error> {
    let mut parts: Vec<(String, Box<dyn VirtioDevice>)> = Vec::new();
    let mut bays = Vec::with_capacity(disks.len());
    for (index, disk) in disks.iter().enumerate() {
        let disk = disk.map(|disk| Disk::open(disk, folder)).transpose()?;
        let bay = Arc::new(disk.map_or_else(DiskBay::default, DiskBay::with));
        parts.push((format!("block{index}"), Box::new(Block::new(Arc::clone(&bay), index))));
        bays.push(bay);
    }
    parts.push(("rng".into(), Box::new(Rng::default())));
    if let Some(vsock) = vsock {
        parts.push(("vsock".into(), Box::new(vsock)));
    }
    if let Some(net) = net {
        devices.net = Some(net.control());
        parts.push(("net".into(), Box::new(net)));
    }
    for ((name, device), slot) in parts.into_iter().zip(slots) {
        let faults = Arc::new(GuestFaults::new(name.clone()));
        let line = wire_irq(vm, slot.irq)?;
        let transport =
            MmioTransport::new(device, memory.clone(), line, Arc::clone(&faults)).map_err(Error::host("an eventfd"))?;
        if transport.has_thread() {
            let address = IoEventAddress::Mmio(slot.address + register::QUEUE_NOTIFY);
            for (queue, kick) in (0_u32..).zip(transport.kicks()) {
                vm.register_ioevent(kick, &address, queue).map_err(Error::kvm("route a queue's notifications"))?;
            }
        }
        let transport = Arc::new(Mutex::new(transport));
        bus.insert(slot.address, VIRTIO_MMIO_SIZE, transport.clone()).expect("slots do not overlap");
        devices.virtio.push(transport);
        devices.faults.push((name, faults));
    }
    let interrupts = devices
        .virtio
        .iter()
        .map(|transport| Arc::clone(transport.lock().unwrap_or_else(PoisonError::into_inner).interrupt()));
    let slots = bays.into_iter().zip(interrupts).map(|(bay, interrupt)| DiskSlot { bay, interrupt });
    devices.disks = DiskSlots::new(slots.collect(), folder);
    Ok(())
}

fn status(config: &MachineConfig, context: &VcpuContext, devices: &Devices) -> Status {
    let guest = memory::resident_bytes(&context.memory).unwrap_or(0);
    let faults = devices.faults.iter().filter(|(_, faults)| faults.count() > 0);
    Status {
        pid: std::process::id(),
        vcpus: config.cpus.count,
        memory_mib: config.memory_mib,
        software_kvm: context.software_kvm,
        timeline: context.timeline.record(),
        exits: context.exits.record(),
        cpu_time_ns: context.cpu_time.total_ns(),
        disks: devices.disks.records(),
        net: devices.net.as_ref().map(NetControl::record),
        link_problems: devices.net.as_ref().map(NetControl::problems).unwrap_or_default(),
        guest_faults: faults
            .map(|(device, faults)| GuestFaultRecord { device: device.clone(), count: faults.count() })
            .collect(),
        guest_resident_bytes: guest,
        monitor_resident_bytes: memory::process_resident_bytes().saturating_sub(guest),
    }
}
