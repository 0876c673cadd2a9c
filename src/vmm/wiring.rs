//! Creates a machine's devices, and connects their registers to buses and their interrupts and notifications to KVM.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;
use wisp_agent::resumed::{RESUMED_PORT, RESUMED_PORTS};

use super::bus::{Bus, SharedDevice};
use super::cpu::time::ThreadClock;
use super::devices::acpi_pm::{self, AcpiPm};
use super::devices::boot_timer::BootTimer;
use super::devices::console::Console;
use super::devices::generation::{self, Generation};
use super::devices::i8042::{self, I8042};
use super::devices::pvpanic::{self, Pvpanic};
use super::devices::resumed::ResumedPorts;
use super::devices::rtc::{self, Rtc};
use super::devices::serial::{self, Serial};
use super::disk_slots::{DiskSlot, DiskSlots};
use super::error::Error;
use super::fault::GuestFaults;
use super::irq::IrqLine;
use super::memory::{GuestMemory, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START};
use super::resume_message::ResumeMessage;
use super::snapshot::MachineState;
use super::virtio::VirtioDevice;
use super::virtio::block::{Block, DiskHandle, Ring};
use super::virtio::mmio::{MmioTransport, Slot};
use super::virtio::net::{Backend, Net, NetControl};
use super::virtio::register;
use super::virtio::rng::Rng;
use super::virtio::vsock::Vsock;
use disk::Disk;
use machine::config::{DiskConfig, NetConfig};
use machine::end::EndSender;
use machine::limits::DiskLimits;
use machine::limits::rate_limiter::SharedDiskLimiter;
use machine::passed_files::FdTable;
use machine::timeline::{Timeline, monotonic_ns};
use netstack::NetstackConfig;
use netstack::broker::LinkSockets;

const KEYBOARD_IRQ: u32 = 1;
/// Interrupt lines for virtio devices: the pins of the 24-pin I/O APIC that the PC devices do not use (0 timer, 1
/// keyboard, 2 cascade, 4 serial port, 8 clock, 9 ACPI, 13 coprocessor).
const VIRTIO_IRQS: [u32; 16] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

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
    pub(super) disks: DiskSlots,
    pub(super) net: Option<NetControl>,
    pub(super) virtio: Vec<Arc<Mutex<MmioTransport>>>,
    pub(super) faults: Vec<(String, Arc<GuestFaults>)>,
    /// CPU clocks of the virtio devices' threads.
    pub(super) clocks: Vec<Arc<ThreadClock>>,
}

pub(super) fn new_eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("create an eventfd"))
}

/// Creates an interrupt line that is connected to pin `gsi` of the I/O APIC.
fn wire_irq(vm: &VmFd, gsi: u32) -> Result<IrqLine, Error> {
    let line = IrqLine::new().map_err(Error::host("create an eventfd"))?;
    vm.register_irqfd(line.eventfd(), gsi).map_err(Error::kvm("register an interrupt line"))?;
    Ok(line)
}

/// Creates the PC devices and connects them to the port `bus`.
pub(super) fn wire_ports(
    vm: &VmFd,
    bus: &mut Bus,
    timeline: &Arc<Timeline>,
    ends: &EndSender,
    ready: &EventFd,
    console: &Console,
    saved: Option<(&MachineState, ResumeMessage)>,
) -> Result<Devices, Error> {
    let serial_room = new_eventfd()?;
    let room = serial_room.try_clone().map_err(Error::host("create an eventfd"))?;
    let irq = wire_irq(vm, serial::IRQ)?;
    let serial = match &saved {
        Some((state, _)) => Serial::restored(&state.serial, irq, console.writer(), room)?,
        None => Serial::new(irq, console.writer(), room),
    };
    let serial = Arc::new(Mutex::new(serial));
    let address = saved.as_ref().and_then(|(state, _)| state.generation);
    let i8042 = Arc::new(Mutex::new(I8042::new(ends.clone(), wire_irq(vm, KEYBOARD_IRQ)?)));
    let ready = ready.try_clone().map_err(Error::host("create an eventfd"))?;
    let (message, release) = saved.map(|(_, resume)| (resume.message, resume.release)).unzip();
    let resumed = Arc::new(Mutex::new(ResumedPorts::new(message)));
    let noted = Arc::clone(&resumed);
    let on_ready = Box::new(move || {
        noted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Cannot fail: each write adds one to a counter that would take centuries to overflow.
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
    let (virtio, faults, clocks) = (Vec::new(), Vec::new(), Vec::new());
    Ok(Devices { serial, serial_room, i8042, rtc, acpi_pm, generation, disks, net: None, virtio, faults, clocks })
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

/// Returns the addresses and interrupts of the first `count` virtio devices, in the order of [`wire_virtio`].
pub(super) fn virtio_slots(count: usize) -> Vec<Slot> {
    let address = |index: usize| VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_SIZE;
    VIRTIO_IRQS.iter().take(count).enumerate().map(|(index, irq)| Slot { address: address(index), irq: *irq }).collect()
}

pub(super) struct VirtioParts<'a> {
    pub disks: &'a [Option<&'a DiskConfig>],
    pub rings: Vec<Ring>,
    pub files: FdTable,
    pub disk_limits: Option<DiskLimits>,
    pub vsock: Option<Vsock>,
    pub net: Option<Net>,
    pub slots: &'a [Slot],
}

/// Creates and connects the virtio devices: one per disk slot (including empty ones), then entropy, vsock, network.
pub(super) fn wire_virtio(
    vm: &VmFd,
    bus: &mut Bus,
    devices: &mut Devices,
    memory: &GuestMemory,
    VirtioParts { disks, mut rings, files, disk_limits, vsock, net, slots }: VirtioParts,
    dir: &Path,
) -> Result<(), Error> {
    let mut parts: Vec<(String, Box<dyn VirtioDevice>)> = Vec::new();
    let mut handles = Vec::with_capacity(disks.len());
    let shared = SharedDiskLimiter::new(disk_limits, monotonic_ns());
    for (index, disk) in disks.iter().enumerate() {
        let disk = disk.map(|disk| Disk::open_with_fds(disk, dir, &files)).transpose()?;
        let disk = Arc::new(DiskHandle::new(disk, shared.clone()));
        parts.push((format!("block{index}"), Box::new(Block::with_ring(Arc::clone(&disk), index, rings.pop()))));
        handles.push(disk);
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
        let transport = MmioTransport::new(device, memory.clone(), line, Arc::clone(&faults))
            .map_err(Error::host("create an eventfd"))?;
        let address = IoEventAddress::Mmio(slot.address + register::QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            vm.register_ioevent(kick, &address, queue).map_err(Error::kvm("register a queue notification"))?;
        }
        devices.clocks.push(Arc::clone(transport.clock()));
        let transport = Arc::new(Mutex::new(transport));
        bus.insert(slot.address, VIRTIO_MMIO_SIZE, transport.clone()).expect("slots do not overlap");
        devices.virtio.push(transport);
        devices.faults.push((name, faults));
    }
    let interrupts = devices
        .virtio
        .iter()
        .map(|transport| Arc::clone(transport.lock().unwrap_or_else(PoisonError::into_inner).interrupt()));
    let slots = handles.into_iter().zip(interrupts).map(|(disk, interrupt)| DiskSlot { disk, interrupt });
    devices.disks = DiskSlots::new(slots.collect(), dir);
    Ok(())
}
