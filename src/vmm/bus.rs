//! Address decoding: finds the device for an access to an I/O port or to the MMIO gap.
//!
//! A bus is filled before the machine runs and does not change afterwards, so vCPUs look up devices without a lock;
//! each device has its own lock. An address without a device reads as all ones and ignores writes, as on a PC bus.

use std::fmt;
use std::sync::{Arc, Mutex};

use machine::sync::lock;

pub trait BusDevice: Send {
    /// Reads `data.len()` bytes (1 to 8) at `offset` within the device's range. `data` is all ones before the call.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` (1 to 8 bytes) at `offset` within the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device on a bus, shared with other threads that use it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

#[derive(Default)]
pub struct Bus {
    /// Sorted by `start`; ranges do not overlap.
    ranges: Vec<Range>,
}

struct Range {
    start: u64,
    length: u64,
    device: SharedDevice,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the {length:#x} bytes at {start:#x} overlap another device")]
pub struct Overlap {
    pub start: u64,
    pub length: u64,
}

impl Bus {
    pub fn insert(&mut self, start: u64, length: u64, device: SharedDevice) -> Result<(), Overlap> {
        let overlap = Overlap { start, length };
        let end = start.checked_add(length).ok_or(Overlap { start, length })?;
        let index = self.ranges.partition_point(|range| range.start < start);
        let before = index.checked_sub(1).and_then(|index| self.ranges.get(index));
        if before.is_some_and(|range| range.start + range.length > start)
            || self.ranges.get(index).is_some_and(|range| range.start < end)
        {
            return Err(overlap);
        }
        self.ranges.insert(index, Range { start, length, device });
        Ok(())
    }

    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).read(offset, data);
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        }
    }

    /// Returns the device whose range contains the whole access, and the access's offset in the range.
    fn find(&self, address: u64, length: usize) -> Option<(u64, &SharedDevice)> {
        let index = self.ranges.partition_point(|range| range.start <= address).checked_sub(1)?;
        let range = &self.ranges[index];
        let offset = address - range.start;
        let end = offset.checked_add(length as u64)?;
        (end <= range.length).then_some((offset, &range.device))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| (range.start, range.length))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn recorder() -> Arc<Mutex<Recorder>> {
        Arc::new(Mutex::new(Recorder::default()))
    }

    #[test]
    fn access_reaches_device_with_its_offset() {
        let (mut bus, device) = (Bus::default(), recorder());
        bus.insert(0x100, 8, device.clone()).unwrap();
        let mut data = [0; 2];
        bus.read(0x103, &mut data);
        bus.write(0x107, &[9]);
        assert_eq!(data, [3, 3]);
        assert_eq!(device.lock().unwrap().0, [(7, vec![9])]);
    }

    #[test]
    fn unclaimed_address_reads_ones() {
        let (mut bus, device) = (Bus::default(), recorder());
        bus.insert(0x100, 8, device.clone()).unwrap();
        for address in [0, 0xff, 0x108, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            bus.write(address, &[1]);
        }
        assert!(device.lock().unwrap().0.is_empty());
    }

    #[test]
    fn access_across_device_end_reads_ones() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, recorder()).unwrap();
        let mut data = [0; 4];
        bus.read(0x106, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, recorder()).unwrap();
        for (start, length) in [(0x100, 1), (0x107, 2), (0xf9, 8), (u64::MAX, 2)] {
            assert_eq!(bus.insert(start, length, recorder()), Err(Overlap { start, length }));
        }
        bus.insert(0x108, 8, recorder()).unwrap();
        bus.insert(0xf8, 8, recorder()).unwrap();
    }
}
