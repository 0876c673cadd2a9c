//! Creates a machine's devices, and connects their registers to buses and their interrupts and notifications to KVM.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;
use wisp_agent::resumed::{RESUMED_PORT, RESUMED_PORTS};

use super::agent_ports::AgentPorts;
use super::bus::{Bus, SharedDevice};
use super::cpu::time::ThreadClock;
use super::devices::acpi_pm::{self, AcpiPm};
use super::devices::console::Console;
use super::devices::generation::{self, Generation};
use super::devices::i8042::{self, I8042};
use super::devices::pvpanic::{self, Pvpanic};
use super::devices::rtc::{self, Rtc};
use super::devices::serial::{self, Serial, SerialState};
use super::disk_slots::{DiskSlot, DiskSlots};
use super::error::Error;
use super::eventfd::new_eventfd;
use super::fault::GuestFaults;
use super::irq::IrqLine;
use super::memory::{GuestMemory, VIRTIO_MMIO_SIZE};
use super::resources::{ResourceAllocator, ResourceError};
use super::resume_message::ResumeMessage;
use super::snapshot::SnapshotError;
use super::virtio::VirtioDevice;
use super::virtio::balloon::{Balloon, BalloonControl};
use super::virtio::block::{Block, DiskHandle, Ring};
use super::virtio::interrupt::Interrupt;
use super::virtio::mmio::{MmioResources, MmioTransport};
use super::virtio::net::{Backend, Net, NetControl};
use super::virtio::register;
use super::virtio::rng::Rng;
use super::virtio::transport::{Transport, TransportState};
use super::virtio::vsock::{Vsock, VsockControl};
use disk::Disk;
use machine::config::{DiskConfig, NetConfig};
use machine::end::EndSender;
use machine::limits::DiskLimits;
use machine::limits::rate_limiter::SharedDiskLimiter;
use machine::passed_files::FdTable;
use machine::sync::lock;
use machine::timeline::{Mark, Timeline, monotonic_ns};
use netstack::NetstackConfig;
use netstack::broker::LinkSockets;

const KEYBOARD_IRQ: u32 = 1;

/// The devices that the VMM accesses after the machine is built.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) serial: Arc<Mutex<Serial>>,
    /// Notified when the serial port's input buffer has free space again.
    pub(super) serial_room: EventFd,
    pub(super) i8042: Arc<Mutex<I8042>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    pub(super) acpi_pm: Arc<Mutex<AcpiPm>>,
    pub(super) generation: Arc<Mutex<Generation>>,
    pub(super) agent_ports: AgentPorts,
    pub(super) disks: DiskSlots,
    pub(super) vsock: Option<RestartableVsock>,
    pub(super) net: Option<NetControl>,
    /// `None` until the virtio devices are added.
    pub(super) balloon: Option<BalloonControl>,
    pub(super) virtio: Vec<Arc<Mutex<dyn Transport>>>,
    pub(super) faults: Vec<(String, Arc<GuestFaults>)>,
    /// CPU clocks of the virtio devices' threads.
    pub(super) clocks: Vec<Arc<ThreadClock>>,
}

/// The vsock device of a machine whose guest may be given an identity while it runs.
#[derive(Debug)]
pub(super) struct RestartableVsock {
    control: VsockControl,
    /// Its index in [`Devices::virtio`].
    index: usize,
}

impl Devices {
    /// Offers `message` to the guest. The next activation of the vsock device makes the guest drop its connections, so
    /// that the agent reads the message, and accepts clients once the agent is ready.
    pub(super) fn await_resume(&self, message: ResumeMessage) -> Result<(), Error> {
        if let Some(vsock) = &self.vsock {
            let release = message.release.try_clone().map_err(Error::host("create an eventfd"))?;
            vsock.control.hold_clients_until(release);
        }
        self.agent_ports.offer(message);
        Ok(())
    }

    /// Gives an identity to a guest whose devices are paused in the states `virtio`.
    pub(super) fn personalize(&self, message: ResumeMessage, virtio: &[TransportState]) -> Result<(), Error> {
        self.await_resume(message)?;
        let index = self.vsock.as_ref().map(|vsock| vsock.index);
        let vsock = index.and_then(|index| self.virtio.get(index).zip(virtio.get(index)));
        let Some((device, state)) = vsock else { return Ok(()) };
        lock(device).restore(state).map_err(|why| SnapshotError::Device(why).into())
    }
}

/// The devices that are created so far, with their buses.
#[derive(Debug)]
pub(super) struct DeviceManager<'a> {
    vm: &'a VmFd,
    memory: &'a GuestMemory,
    /// Resources for the virtio devices, in the order in which the devices are added.
    resources: std::vec::IntoIter<MmioResources>,
    ports: Bus,
    mmio: Bus,
    devices: Devices,
}

pub(super) struct PcParts<'a> {
    pub timeline: &'a Arc<Timeline>,
    pub ends: &'a EndSender,
    pub ready: &'a EventFd,
    pub console: &'a Console,
    pub state: PcState<'a>,
}

/// The state in which the PC devices are created.
pub(super) struct PcState<'a> {
    pub serial: &'a SerialState,
    /// The address of the generation record, if the guest has written it.
    pub generation: Option<u64>,
    /// The mark of the agent's first ready report.
    pub first_ready: Mark,
}

pub(super) struct VirtioParts<'a> {
    pub disks: &'a [Option<&'a DiskConfig>],
    pub rings: Vec<Ring>,
    pub files: FdTable,
    pub disk_limits: Option<DiskLimits>,
    pub vsock: Option<Vsock>,
    pub net: Option<Net>,
    /// Directory for the overlays of ephemeral disks.
    pub dir: &'a Path,
}

/// All devices, and the buses of their registers.
pub(super) struct ConnectedDevices {
    pub ports: Bus,
    pub mmio: Bus,
    pub devices: Devices,
}

/// Assigns addresses and interrupts to `count` virtio devices, in the order of [`DeviceManager::add_virtio_devices`].
pub(super) fn assign_resources(count: usize) -> Result<Vec<MmioResources>, ResourceError> {
    let mut allocator = ResourceAllocator::default();
    (0..count).map(|_| allocator.assign_mmio()).collect()
}

impl<'a> DeviceManager<'a> {
    /// Creates the PC devices. `resources` are those of the virtio devices.
    pub(super) fn new(
        vm: &'a VmFd,
        memory: &'a GuestMemory,
        resources: Vec<MmioResources>,
        PcParts { timeline, ends, ready, console, state }: PcParts,
    ) -> Result<DeviceManager<'a>, Error> {
        let serial_room = new_eventfd()?;
        let room = serial_room.try_clone().map_err(Error::host("create an eventfd"))?;
        let irq = connect_irq(vm, serial::IRQ)?;
        let ready = ready.try_clone().map_err(Error::host("create an eventfd"))?;
        let serial = Serial::new(state.serial, irq, console.writer(), room)?;
        let devices = Devices {
            serial: Arc::new(Mutex::new(serial)),
            serial_room,
            i8042: Arc::new(Mutex::new(I8042::new(ends.clone(), connect_irq(vm, KEYBOARD_IRQ)?))),
            rtc: Arc::default(),
            acpi_pm: Arc::new(Mutex::new(AcpiPm::new(ends.clone()))),
            generation: Arc::new(Mutex::new(Generation::new(state.generation))),
            agent_ports: AgentPorts::new(timeline, state.first_ready, ready),
            disks: DiskSlots::default(),
            vsock: None,
            net: None,
            balloon: None,
            virtio: Vec::new(),
            faults: Vec::new(),
            clocks: Vec::new(),
        };
        let on_bus: [(u16, u64, SharedDevice); 8] = [
            (i8042::PORT, i8042::LENGTH, devices.i8042.clone()),
            (rtc::PORT, rtc::LENGTH, devices.rtc.clone()),
            (serial::PORT, serial::LENGTH, devices.serial.clone()),
            (acpi_pm::PORT, acpi_pm::LENGTH, devices.acpi_pm.clone()),
            (pvpanic::PORT, 1, Arc::new(Mutex::new(Pvpanic::new(ends.clone())))),
            (wisp_agent::BOOT_TIMER_PORT, 1, devices.agent_ports.boot_timer.clone()),
            (RESUMED_PORT, RESUMED_PORTS as u64, devices.agent_ports.resumed.clone()),
            (generation::PORT, generation::LENGTH, devices.generation.clone()),
        ];
        let mut ports = Bus::default();
        for (port, length, device) in on_bus {
            ports.insert(port.into(), length, device).expect("the ports of the PC's devices do not overlap");
        }
        Ok(DeviceManager { vm, memory, resources: resources.into_iter(), ports, mmio: Bus::default(), devices })
    }

    /// Adds the virtio devices: one per disk slot (including empty ones), then entropy, vsock, network, balloon.
    pub(super) fn add_virtio_devices(
        &mut self,
        VirtioParts { disks, mut rings, files, disk_limits, vsock, net, dir }: VirtioParts,
    ) -> Result<(), Error> {
        let shared = SharedDiskLimiter::new(disk_limits, monotonic_ns());
        let mut slots = Vec::with_capacity(disks.len());
        for (index, disk) in disks.iter().enumerate() {
            let disk = disk.map(|disk| Disk::open_with_fds(disk, dir, &files)).transpose()?;
            let disk = Arc::new(DiskHandle::new(disk, shared.clone()));
            let device = Block::with_ring(Arc::clone(&disk), index, rings.pop());
            let interrupt = self.add_virtio(format!("block{index}"), Box::new(device))?;
            slots.push(DiskSlot { disk, interrupt });
        }
        self.devices.disks = DiskSlots::new(slots, dir);
        self.add_virtio("rng".into(), Box::new(Rng::default()))?;
        if let Some(vsock) = vsock {
            let control = vsock.control();
            self.add_virtio("vsock".into(), Box::new(vsock))?;
            let index = self.devices.virtio.len() - 1;
            self.devices.vsock = Some(RestartableVsock { control, index });
        }
        if let Some(net) = net {
            self.devices.net = Some(net.control());
            self.add_virtio("net".into(), Box::new(net))?;
        }
        let balloon = Balloon::new().map_err(Error::host("create an eventfd"))?;
        self.devices.balloon = Some(balloon.control());
        self.add_virtio("balloon".into(), Box::new(balloon))?;
        Ok(())
    }

    /// Adds a virtio device with an MMIO transport.
    fn add_virtio(&mut self, name: String, device: Box<dyn VirtioDevice>) -> Result<Arc<Interrupt>, Error> {
        let MmioResources { address, irq } = self.resources.next().ok_or(ResourceError::Addresses)?;
        let faults = Arc::new(GuestFaults::new(name.clone()));
        let line = connect_irq(self.vm, irq)?;
        let transport = MmioTransport::new(device, self.memory.clone(), line, Arc::clone(&faults))
            .map_err(Error::host("create an eventfd"))?;
        let notify = IoEventAddress::Mmio(address + register::QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            self.vm.register_ioevent(kick, &notify, queue).map_err(Error::kvm("register a queue notification"))?;
        }
        let interrupt = Arc::clone(transport.interrupt());
        self.devices.clocks.push(Arc::clone(transport.clock()));
        self.devices.faults.push((name, faults));
        let transport = Arc::new(Mutex::new(transport));
        self.mmio.insert(address, VIRTIO_MMIO_SIZE, transport.clone()).expect("assigned addresses do not overlap");
        self.devices.virtio.push(transport);
        Ok(interrupt)
    }

    pub(super) fn finish(self) -> ConnectedDevices {
        ConnectedDevices { ports: self.ports, mmio: self.mmio, devices: self.devices }
    }
}

/// Creates an interrupt line that is connected to pin `gsi` of the I/O APIC.
fn connect_irq(vm: &VmFd, gsi: u32) -> Result<IrqLine, Error> {
    let line = IrqLine::new().map_err(Error::host("create an eventfd"))?;
    vm.register_irqfd(line.eventfd(), gsi).map_err(Error::kvm("register an interrupt line"))?;
    Ok(line)
}

pub(super) fn connect(
    config: &NetConfig,
    network: Option<OwnedFd>,
    link: Option<NetstackConfig>,
    sockets: LinkSockets,
) -> Result<Net, Error> {
    let backend = network.map_or(Ok(Backend::Disconnected), Backend::of).map_err(Error::host("set up the network"))?;
    Net::new(config, backend, link, Some(sockets)).map_err(Error::host("set up the network"))
}
