//! Fuzzing entry points for the PC devices: port accesses of all widths, and console input.

use std::sync::{Arc, Mutex};

use arbitrary::Unstructured;
use vmm_sys_util::eventfd::EventFd;
use wisp_agent::resumed::{RESUMED_PORT, RESUMED_PORTS, Resumed};

use super::acpi_pm::{self, AcpiPm};
use super::boot_timer::BootTimer;
use super::console::Console;
use super::generation::{self, Generation};
use super::i8042::{self, I8042};
use super::pvpanic::{self, Pvpanic};
use super::resumed::ResumedPorts;
use super::rtc::{self, Rtc};
use super::serial::{self, Serial, SerialState};
use crate::bus::{Bus, SharedDevice};
use crate::irq::IrqLine;
use machine::end::end_channel;
use machine::timeline::{Mark, Timeline};

pub fn ports(data: &[u8]) {
    let Ok((bus, serial, ports)) = wire() else { return };
    let mut input = Unstructured::new(data);
    let mut access = || -> arbitrary::Result<bool> {
        let [what, which, offset]: [u8; 3] = input.arbitrary()?;
        let (start, length) = ports[usize::from(which) % ports.len()];
        let (address, width) = (start + u64::from(offset) % (length + 1), 1 + usize::from(what >> 1 & 7));
        if what & 0x40 != 0 {
            let count = usize::from(input.arbitrary::<u8>()?).min(input.len());
            let typed = input.bytes(count)?;
            let _ = machine::sync::lock(&serial).input(typed);
        } else if what & 1 == 0 {
            bus.read(address, &mut [0; 8][..width]);
        } else {
            bus.write(address, &input.arbitrary::<[u8; 8]>()?[..width]);
        }
        Ok(!input.is_empty())
    };
    while access().unwrap_or(false) {}
}

/// The first port and the number of ports of each device.
type Ports = Vec<(u64, u64)>;

fn wire() -> std::io::Result<(Bus, Arc<Mutex<Serial>>, Ports)> {
    let (ends, _receiver) = end_channel()?;
    let timeline = Arc::new(Timeline::default());
    let console = Console::new(None, Arc::clone(&timeline))?;
    let room = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let serial = Serial::new(&SerialState::default(), IrqLine::new()?, console.writer(), room);
    let serial = Arc::new(Mutex::new(serial.map_err(std::io::Error::other)?));
    let message = Resumed { entropy: Some([1; 32]), hostname: Some("other".into()), ..Resumed::default() };
    let mut resumed = ResumedPorts::default();
    resumed.offer(message, EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    let boot_timer = BootTimer::new(timeline, Mark::AgentReady, Box::new(|| {}));
    let devices: [(u64, u64, SharedDevice); 8] = [
        (i8042::PORT.into(), i8042::LENGTH, Arc::new(Mutex::new(I8042::new(ends.clone(), IrqLine::new()?)))),
        (rtc::PORT.into(), rtc::LENGTH, Arc::new(Mutex::new(Rtc::new(|| 1_800_000_000)))),
        (serial::PORT.into(), serial::LENGTH, serial.clone()),
        (acpi_pm::PORT.into(), acpi_pm::LENGTH, Arc::new(Mutex::new(AcpiPm::new(ends.clone())))),
        (pvpanic::PORT.into(), 1, Arc::new(Mutex::new(Pvpanic::new(ends)))),
        (wisp_agent::BOOT_TIMER_PORT.into(), 1, Arc::new(Mutex::new(boot_timer))),
        (RESUMED_PORT.into(), RESUMED_PORTS as u64, Arc::new(Mutex::new(resumed))),
        (generation::PORT.into(), generation::LENGTH, Arc::new(Mutex::new(Generation::default()))),
    ];
    let mut bus = Bus::default();
    let ports = devices.iter().map(|(port, length, _)| (*port, *length)).collect();
    for (port, length, device) in devices {
        bus.insert(port, length, device).expect("the ports of the PC's devices do not overlap");
    }
    Ok((bus, serial, ports))
}
