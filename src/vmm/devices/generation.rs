//! The generation port. The guest's kernel writes the address of its generation record to it: a number and a seed,
//! which the VMM changes when it restores the guest (`images/kernel/patches/0010-random-generation.patch`).
//!
//! ```text
//! port + 0   low half of the guest physical address, 4 bytes
//! port + 4   high half
//!
//! address + 0   number, 8 bytes: a new number means a new seed
//! address + 8   seed, 32 bytes
//! ```

use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::memory::GuestMemory;

pub const PORT: u16 = 0x780;
pub const LENGTH: u64 = 8;

#[derive(Debug, Default)]
pub struct Generation {
    address: u64,
}

impl Generation {
    /// Creates the device. `address` is the one that a restored guest wrote before its snapshot, if any.
    pub fn new(address: Option<u64>) -> Generation {
        Generation { address: address.unwrap_or(0) }
    }

    pub fn address(&self) -> Option<u64> {
        Some(self.address).filter(|address| *address != 0)
    }
}

impl BusDevice for Generation {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(half) = <[u8; 4]>::try_from(data) else { return };
        let half = u64::from(u32::from_le_bytes(half));
        match offset {
            0 => self.address = self.address & !0xffff_ffff | half,
            4 => self.address = self.address & 0xffff_ffff | half << 32,
            _ => {}
        }
    }
}

/// Writes a new generation to a restored guest's memory before it runs. Returns false if `address` is unusable.
pub fn renew(memory: &GuestMemory, address: Option<u64>, number: u64, seed: [u8; 32]) -> bool {
    let content = [&number.to_le_bytes()[..], &seed].concat();
    address.is_some_and(|address| memory.write_slice(&content, GuestAddress(address)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn generation_is_written_to_the_guest_address() {
        let memory = allocate(64).unwrap();
        let mut device = Generation::default();
        assert_eq!(device.address(), None);
        assert!(!renew(&memory, device.address(), 1, [2; 32]));
        device.write(0, &0x20_0000_u32.to_le_bytes());
        device.write(4, &0_u32.to_le_bytes());
        device.write(2, &[1, 1, 1, 1]);
        device.write(0, &[1]);
        assert_eq!(device.address(), Some(0x20_0000));
        assert!(renew(&memory, device.address(), 1, [2; 32]));
        let mut content = [0; 40];
        memory.read_slice(&mut content, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(content[..8], 1_u64.to_le_bytes());
        assert_eq!(content[8..], [2; 32]);
        assert_eq!(Generation::new(device.address()).address(), device.address());
    }

    #[test]
    fn address_outside_memory_is_refused() {
        let memory = allocate(64).unwrap();
        for address in [64 << 20, (64 << 20) - 8, u64::MAX, 1 << 32] {
            assert!(!renew(&memory, Some(address), 1, [2; 32]), "{address:#x}");
        }
    }
}
