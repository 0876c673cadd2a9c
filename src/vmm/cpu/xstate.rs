//! Saves and restores the extended states of guest tasks (x87, SSE, AVX, AVX-512) on software KVM.
//!
//! Guest programs run natively there, with the features in the host's XCR0, whatever the guest's CPUID and XCR0 say.
//! KVM's emulator lacks XSAVE and XRSTOR, so the guest's kernel cannot save these states on a context switch. Three
//! ports save and restore them for the kernel (`images/kernel/patches/0008-*`):
//!
//! - a read of [`FEATURES_PORT`] returns the state components that are saved, as in XCR0;
//! - a write of an XSAVE area's physical address, in units of 64 bytes, to [`SAVE_PORT`] or [`RESTORE_PORT`] copies
//!   all components from or to the writing vCPU (Intel SDM volume 1, section 13.4: the standard format).
//!
//! On other hosts the ports do not exist and read as all ones.

use kvm_bindings::{CpuId, kvm_xsave};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// Reads return the components that are saved. All three ports are 32 bits wide.
pub const FEATURES_PORT: u16 = 0x6e4;
pub const SAVE_PORT: u16 = 0x6e8;
pub const RESTORE_PORT: u16 = 0x6ec;

/// Bits of XCR0: x87, SSE, AVX, and three for AVX-512.
const X87: u32 = 1;
const SSE: u32 = 1 << 1;
const KEPT: u32 = 0b1110_0111;
/// Subleaf 0 lists the state components; each other subleaf has the size (EAX) and offset (EBX) of a component.
const XSTATE_LEAF: u32 = 0xd;
/// The size of the legacy region and the header, which every area has.
const LEGACY_AND_HEADER: usize = 576;
/// The alignment of an area. The guest writes an area's address divided by it to the ports.
const UNIT: u64 = 64;

/// Offsets in an area, in 32-bit words: x87 control word (with the status word above it), the rest of the x87 header
/// up to MXCSR, the x87 registers, the SSE registers, the header's `XSTATE_BV` (two words).
const X87_CONTROL: usize = 0;
const X87_POINTERS: std::ops::Range<usize> = 1..6;
const X87_REGISTERS: std::ops::Range<usize> = 8..40;
const SSE_REGISTERS: std::ops::Range<usize> = 40..104;
const XSTATE_BV: usize = 128;
/// The initial x87 control word, with a status word of zero.
const X87_CONTROL_INITIAL: u32 = 0x37f;

#[derive(Debug, thiserror::Error)]
pub enum XstateError {
    #[error("the XSAVE area at {0:#x} is outside guest memory")]
    Address(u64),
    /// `EINVAL` means that the area's content is invalid.
    #[error("KVM failed to save or restore the XSAVE area at {0:#x}: {1}")]
    Kvm(u64, #[source] kvm_ioctls::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xstate {
    features: u32,
    words: usize,
}

impl Xstate {
    /// Returns the components to save on this host. Returns `None` if KVM does not support XSAVE, or describes the
    /// components incompletely or as too large.
    pub fn of_host(supported: &CpuId) -> Option<Xstate> {
        let subleaf = |index: u32| {
            supported.as_slice().iter().find(|entry| entry.function == XSTATE_LEAF && entry.index == index)
        };
        let features = subleaf(0)?.eax & KEPT;
        if features & (X87 | SSE) != X87 | SSE {
            return None;
        }
        let ends = (2..u32::BITS)
            .filter(|bit| features & (1 << bit) != 0)
            .map(|bit| subleaf(bit).map(|entry| entry.ebx as usize + entry.eax as usize));
        let mut length = LEGACY_AND_HEADER;
        for end in ends {
            length = length.max(end?);
        }
        (length <= size_of::<kvm_xsave>()).then_some(Xstate { features, words: length.div_ceil(4) })
    }

    pub fn features(&self) -> u32 {
        self.features
    }

    pub fn write(&self, vcpu: &VcpuFd, memory: &GuestMemory, port: u16, value: u32) -> Result<(), XstateError> {
        let address = u64::from(value) * UNIT;
        match port {
            SAVE_PORT => self.save(vcpu, memory, address),
            RESTORE_PORT => self.restore(vcpu, memory, address),
            _ => Ok(()),
        }
    }

    fn save(&self, vcpu: &VcpuFd, memory: &GuestMemory, address: u64) -> Result<(), XstateError> {
        let xsave = vcpu.get_xsave().map_err(|error| XstateError::Kvm(address, error))?;
        let bytes: Vec<u8> = xsave.region[..self.words].iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(address)).map_err(|_| XstateError::Address(address))
    }

    fn restore(&self, vcpu: &VcpuFd, memory: &GuestMemory, address: u64) -> Result<(), XstateError> {
        let mut bytes = vec![0; self.words * 4];
        memory.read_slice(&mut bytes, GuestAddress(address)).map_err(|_| XstateError::Address(address))?;
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        write_out_legacy(&mut xsave.region);
        // SAFETY: KVM reads no more than the 4096 bytes of `kvm_xsave`, because no larger states (AMX) were permitted
        // to guests of this process (api.rst, "KVM_SET_XSAVE").
        unsafe { vcpu.set_xsave(&xsave) }.map_err(|error| XstateError::Kvm(address, error))
    }
}

/// Writes the initial x87 and SSE states where the header marks them as absent, and marks them as present. XRSTOR
/// always loads MXCSR from the area (Intel SDM volume 1, section 13.8.1), but KVM loads it only with a component that
/// uses it.
fn write_out_legacy(region: &mut [u32; 1024]) {
    if region[XSTATE_BV] & X87 == 0 {
        region[X87_CONTROL] = X87_CONTROL_INITIAL;
        region[X87_POINTERS].fill(0);
        region[X87_REGISTERS].fill(0);
    }
    if region[XSTATE_BV] & SSE == 0 {
        region[SSE_REGISTERS].fill(0);
    }
    region[XSTATE_BV] |= X87 | SSE;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn leaf(index: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function: XSTATE_LEAF, index, eax, ebx, ..Default::default() }
    }

    fn of_host(entries: &[kvm_cpuid_entry2]) -> Option<Xstate> {
        Xstate::of_host(&CpuId::from_entries(entries).unwrap())
    }

    #[test]
    fn area_ends_with_its_last_component() {
        assert_eq!(of_host(&[leaf(0, 3, 0)]), Some(Xstate { features: 3, words: 144 }));
        assert_eq!(of_host(&[leaf(0, 7, 0), leaf(2, 256, 576)]), Some(Xstate { features: 7, words: 208 }));
    }

    #[test]
    fn protection_keys_and_tiles_are_not_saved() {
        let avx = [leaf(0, 0x6_0207, 0), leaf(2, 256, 576), leaf(9, 8, 2688), leaf(18, 8192, 2816)];
        assert_eq!(of_host(&avx), Some(Xstate { features: 7, words: 208 }));
    }

    #[test]
    fn incomplete_component_list_disables_saving() {
        assert_eq!(of_host(&[]), None);
        assert_eq!(of_host(&[leaf(0, 0, 0)]), None);
        assert_eq!(of_host(&[leaf(0, 7, 0)]), None);
        assert_eq!(of_host(&[leaf(0, 7, 0), leaf(2, 256, 4096)]), None);
    }

    #[test]
    fn absent_states_are_initialized_and_mxcsr_is_kept() {
        let mut region = [7; 1024];
        region[XSTATE_BV] = 4;
        write_out_legacy(&mut region);
        assert_eq!((region[0], region[5], region[6], region[8], region[103]), (0x37f, 0, 7, 0, 0));
        assert_eq!(region[XSTATE_BV], 7);

        let mut region = [7; 1024];
        region[XSTATE_BV] = 3;
        write_out_legacy(&mut region);
        assert_eq!((region[0], region[8], region[103], region[XSTATE_BV]), (7, 7, 7, 3));
    }
}
