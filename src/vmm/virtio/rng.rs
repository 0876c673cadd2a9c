//! The entropy device (specification, section 5.4): fills what the driver offers with the host's random bytes.
//!
//! A request is served on the vCPU that made it: it is rare, and a host's random bytes take less time than waking a
//! thread.

use rustix::rand::{GetRandomFlags, getrandom};

use super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::queue::{self, Buffer, QueueError};
use super::{ActivateError, Activation, QueueState, VirtioDevice};

/// The device's id (section 5).
const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: &[u16] = &[64];
/// What one request gets at most; a driver that wants more asks again.
const REQUEST_LIMIT: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    active: Option<Activation>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(activation);
        Ok(())
    }

    fn has_thread(&self) -> bool {
        false
    }

    fn notify(&mut self, _queue: usize) {
        let Some(active) = &mut self.active else { return };
        if let Err(error) = serve(active) {
            active.faults.record(&error);
            active.interrupt.need_reset();
            self.active = None;
        }
    }

    /// It serves on the vCPU that notified, and vCPUs are paused first.
    fn pause(&mut self) -> Vec<QueueState> {
        self.active.as_ref().map_or_else(Vec::new, Activation::queue_states)
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

fn serve(active: &mut Activation) -> Result<(), QueueError> {
    let [requests] = active.queues.as_mut_slice() else { return Ok(()) };
    loop {
        while let Some(chain) = requests.pop()? {
            if let Some(Buffer { address, .. }) = chain.readable.first() {
                return Err(QueueError::WrongDirection { queue: requests.index(), address: address.0 });
            }
            let mut bytes = [0_u8; REQUEST_LIMIT];
            let wanted = queue::total_length(&chain.writable).min(REQUEST_LIMIT as u64) as usize;
            let filled = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            let written = queue::write_to(&active.memory, &chain.writable, &bytes[..filled]);
            requests.add_used(chain.head, written as u32)?;
        }
        requests.notify()?;
        if !requests.enable_notifications()? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::fault::GuestFaults;
    use crate::vmm::irq::IrqLine;
    use crate::vmm::memory::{self, GuestMemory};
    use crate::vmm::virtio::interrupt::{Interrupt, status};
    use crate::vmm::virtio::queue::tests::{WRITE, queue_with};
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    fn active_rng(
        memory: &GuestMemory,
        descriptors: &[(u64, u32, u16, u16)],
    ) -> (Rng, Arc<Interrupt>, Arc<GuestFaults>) {
        let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
        let faults = Arc::new(GuestFaults::new("rng"));
        let mut rng = Rng::default();
        let activation = Activation {
            memory: memory.clone(),
            queues: vec![queue_with(memory, descriptors, &[0])],
            interrupt: Arc::clone(&interrupt),
            features: VERSION_1,
            faults: Arc::clone(&faults),
        };
        rng.activate(activation).unwrap();
        (rng, interrupt, faults)
    }

    #[test]
    fn a_buffer_is_filled_with_random_bytes() {
        let memory = memory::allocate(64).unwrap();
        let (mut rng, ..) = active_rng(&memory, &[(0x10_0000, 64, WRITE, 0)]);
        rng.notify(0);
        let mut bytes = [0; 64];
        memory.read_slice(&mut bytes, GuestAddress(0x10_0000)).unwrap();
        assert!(bytes.iter().filter(|byte| **byte != 0).count() > 32);
    }

    #[test]
    fn a_buffer_that_cannot_be_written_needs_a_reset() {
        let memory = memory::allocate(64).unwrap();
        let (mut rng, interrupt, faults) = active_rng(&memory, &[(0x10_0000, 64, 0, 0)]);
        rng.notify(0);
        assert_eq!(faults.count(), 1);
        assert_ne!(interrupt.device_status() & status::DEVICE_NEEDS_RESET, 0);
        rng.notify(0);
        assert_eq!(faults.count(), 1, "a device that needs a reset serves nothing");
    }
}
