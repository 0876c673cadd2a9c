//! The PC devices that a guest without firmware expects, one file each.
//!
//! Devices do not depend on KVM: `wiring` connects their registers to a bus and their interrupts to KVM. Each device
//! implements [`BusDevice`](crate::bus::BusDevice) with offsets from its first port.

pub mod acpi_pm;
pub mod boot_timer;
pub mod console;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod generation;
pub mod i8042;
pub mod pvpanic;
pub mod resumed;
pub mod rtc;
pub mod serial;
