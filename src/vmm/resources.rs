//! Assigns addresses in the MMIO gap and interrupts to devices.
//!
//! Both are assigned in ascending order. The guest of a snapshot expects its devices where they were, so a change of
//! the order or of the reserved pins invalidates snapshots.

use crate::boot::mptable::IO_APIC_PINS;
use crate::memory::{IO_APIC_ADDRESS, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START};
use crate::virtio::mmio::MmioResources;

/// Pins of the I/O APIC that belong to PC devices: timer, keyboard, cascade, two serial ports, clock, ACPI,
/// coprocessor.
const RESERVED_PINS: [u32; 8] = [0, 1, 2, 3, 4, 8, 9, 13];

#[derive(Debug)]
pub struct ResourceAllocator {
    next_address: u64,
    next_pin: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    #[error("there is no address left for another device")]
    Addresses,
    #[error("there is no interrupt left for another device")]
    Interrupts,
}

impl Default for ResourceAllocator {
    fn default() -> ResourceAllocator {
        ResourceAllocator { next_address: VIRTIO_MMIO_START, next_pin: 0 }
    }
}

impl ResourceAllocator {
    /// Assigns the address and the interrupt of a virtio-mmio device.
    pub fn assign_mmio(&mut self) -> Result<MmioResources, ResourceError> {
        Ok(MmioResources { address: self.assign_address(VIRTIO_MMIO_SIZE)?, irq: self.assign_pin()? })
    }

    /// Assigns `length` bytes, which must be a power of two, at a multiple of `length`.
    fn assign_address(&mut self, length: u64) -> Result<u64, ResourceError> {
        let start = self.next_address.checked_next_multiple_of(length).ok_or(ResourceError::Addresses)?;
        let end = start.checked_add(length).filter(|end| *end <= IO_APIC_ADDRESS.into());
        self.next_address = end.ok_or(ResourceError::Addresses)?;
        Ok(start)
    }

    fn assign_pin(&mut self) -> Result<u32, ResourceError> {
        let mut free = (self.next_pin..IO_APIC_PINS.into()).filter(|pin| !RESERVED_PINS.contains(pin));
        let pin = free.next().ok_or(ResourceError::Interrupts)?;
        self.next_pin = pin + 1;
        Ok(pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_equals_that_of_existing_snapshots() {
        let mut allocator = ResourceAllocator::default();
        let irqs = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
        for (index, irq) in (0..).zip(irqs) {
            assert_eq!(allocator.assign_mmio(), Ok(MmioResources { address: 0xd000_0000 + index * 0x1000, irq }));
        }
        assert_eq!(allocator.assign_mmio(), Err(ResourceError::Interrupts));
    }

    #[test]
    fn addresses_are_aligned_and_end_before_the_io_apic() {
        let mut allocator = ResourceAllocator::default();
        assert_eq!(allocator.assign_address(0x1000), Ok(0xd000_0000));
        assert_eq!(allocator.assign_address(1 << 24), Ok(0xd100_0000));
        assert_eq!(allocator.assign_address(1 << 30), Err(ResourceError::Addresses));
        assert_eq!(allocator.assign_address(1 << 63), Err(ResourceError::Addresses));
        assert_eq!(allocator.assign_address(0x1000), Ok(0xd200_0000));
    }
}
