//! The few devices of a PC that a guest without firmware still looks for, one file each.
//!
//! A device's registers know nothing of buses, eventfds or KVM: [`wire`](crate::vmm::machine) connects them. Each
//! implements [`BusDevice`](crate::vmm::bus::BusDevice) over offsets from its own first port.

pub mod acpi_pm;
pub mod boot_timer;
pub mod console;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod generation;
pub mod i8042;
pub mod pvpanic;
pub mod resumed;
pub mod rtc;
pub mod serial;
