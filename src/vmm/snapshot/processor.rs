//! The host's CPU, as recorded in a snapshot. A guest can be restored only on a CPU with the same model and features.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use kvm_bindings::{Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

/// The revision of the loaded microcode, which KVM provides as a feature MSR.
const MSR_IA32_UCODE_REV: u32 = 0x8b;
/// Leaf 1, ECX: set by an operating system that uses XSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7, ECX: set by an operating system that uses protection keys.
const OSPKE: u32 = 1 << 4;

/// The bits of a CPUID leaf to compare. Excludes bits that differ between a host's CPUs or that its kernel changes.
#[derive(Debug, Clone, Copy)]
struct Compared {
    function: u32,
    index: u32,
    /// Masks of EAX, EBX, ECX and EDX.
    masks: [u32; 4],
}

const ALL: u32 = u32::MAX;

const fn leaf(function: u32, index: u32, masks: [u32; 4]) -> Compared {
    Compared { function, index, masks }
}

const COMPARED: [Compared; 12] = [
    // Family, model and stepping; features.
    leaf(0x1, 0, [ALL, 0, !OSXSAVE, ALL]),
    // Features; EDX contains those for mitigations.
    leaf(0x7, 0, [ALL, ALL, !OSPKE, ALL]),
    leaf(0x7, 1, [ALL; 4]),
    leaf(0x7, 2, [ALL; 4]),
    // The extended states and their total size, excluding the size of the enabled states.
    leaf(0xd, 0, [ALL, 0, ALL, ALL]),
    leaf(0xd, 1, [ALL, 0, ALL, ALL]),
    // The sizes and offsets of AVX, the AVX-512 masks and PKRU.
    leaf(0xd, 2, [ALL; 4]),
    leaf(0xd, 5, [ALL; 4]),
    leaf(0xd, 9, [ALL; 4]),
    leaf(0x8000_0001, 0, [0, 0, ALL, ALL]),
    // The width of addresses; AMD's features for mitigations.
    leaf(0x8000_0008, 0, [ALL, ALL, 0, 0]),
    leaf(0x8000_0021, 0, [ALL, 0, 0, 0]),
];

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CpuIdentity {
    pub processor: Processor,
    /// The guest's TSC frequency, if KVM provides it. Guests boot with `tsc=reliable` and measure it only once.
    pub tsc_khz: Option<u32>,
    pub cpuid: Vec<Vec<kvm_cpuid_entry2>>,
}

/// Guests correct a frequency error of up to 1/4000 (250 ppm), which is also KVM's limit.
const TSC_TOLERANCE: u32 = 4000;

/// Returns the frequency to set for a restored guest's TSC, if it differs from the host's and KVM can scale it. Fails
/// if the frequencies differ too much and KVM cannot scale the TSC.
pub fn tsc_to_set(saved: Option<u32>, here: Option<u32>, can_scale: bool) -> Result<Option<u32>, String> {
    match (saved, here) {
        (Some(saved), Some(here)) if saved != here && can_scale => Ok(Some(saved)),
        (Some(saved), Some(here)) if saved.abs_diff(here) > saved / TSC_TOLERANCE => Err(format!(
            "its TSC ran at {saved} kHz, but this host's runs at {here} kHz, and this CPU cannot scale the frequency"
        )),
        _ => Ok(None),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    brand: String,
    /// The registers EAX, EBX, ECX and EDX of each leaf in [`COMPARED`], masked.
    leaves: Vec<[u32; 4]>,
    microcode: Option<u64>,
}

impl Processor {
    /// Returns the CPU that this thread is running on. Without `kvm`, the microcode revision is unknown.
    pub fn of_host(kvm: Option<&Kvm>) -> Processor {
        let (basic, extended) = (__cpuid(0).eax, __cpuid(0x8000_0000).eax);
        let read = |Compared { function, index, masks }: &Compared| {
            let most = if *function < 0x8000_0000 { basic } else { extended };
            let is_there = *function <= most && (*function != 7 || *index <= __cpuid_count(7, 0).eax);
            let registers = if is_there { words(__cpuid_count(*function, *index)) } else { [0; 4] };
            std::array::from_fn(|register| registers[register] & masks[register])
        };
        let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .filter(|function| *function <= extended)
            .flat_map(|function| words(__cpuid(function)))
            .flat_map(u32::to_le_bytes)
            .take_while(|byte| *byte != 0)
            .collect();
        Processor {
            brand: String::from_utf8_lossy(&brand).trim().to_string(),
            leaves: COMPARED.iter().map(read).collect(),
            microcode: kvm.and_then(microcode),
        }
    }

    /// Describes the first difference between this CPU, on which the snapshot was taken, and the CPU `here`.
    pub fn difference(&self, here: &Processor) -> Option<String> {
        if self.brand != here.brand {
            let (saved, now) = (&self.brand, &here.brand);
            return Some(format!("it was taken on a different CPU model, {saved:?}; this host has {now:?}"));
        }
        if self.leaves.len() != here.leaves.len() {
            return Some("it does not record the CPU on which it was taken".into());
        }
        for (Compared { function, index, .. }, (saved, now)) in
            COMPARED.iter().zip(self.leaves.iter().zip(&here.leaves))
        {
            if saved != now {
                return Some(format!(
                    "this host's CPU features have changed since it was taken: CPUID leaf {function:#x}.{index} was \
                     {saved:#x?} and is now {now:#x?}"
                ));
            }
        }
        match (self.microcode, here.microcode) {
            (Some(saved), Some(now)) if saved != now => {
                Some(format!("it was taken with microcode revision {saved:#x}, but this host has {now:#x}"))
            }
            _ => None,
        }
    }
}

fn words(leaf: CpuidResult) -> [u32; 4] {
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

fn microcode(kvm: &Kvm) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: MSR_IA32_UCODE_REV, ..Default::default() }]).ok()?;
    (kvm.get_msrs(&mut msrs).ok()? == 1).then(|| msrs.as_slice()[0].data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_processor_is_stable() {
        assert_eq!(Processor::of_host(None), Processor::of_host(None));
        assert_eq!(Processor::of_host(None).difference(&Processor::of_host(None)), None);
    }

    #[test]
    fn difference_reports_each_compared_register() {
        let here = Processor::of_host(None);
        for (place, Compared { function, masks, .. }) in COMPARED.iter().enumerate() {
            for register in (0..4).filter(|register| masks[*register] != 0) {
                let mut saved = here.clone();
                saved.leaves[place][register] ^= 1 << 10;
                let reason = saved.difference(&here).unwrap();
                assert!(reason.contains(&format!("leaf {function:#x}.")), "{reason}");
            }
        }
        let mut saved = here.clone();
        saved.brand.push('!');
        assert!(saved.difference(&here).unwrap().contains("different CPU model"));
        saved = Processor { leaves: Vec::new(), ..here.clone() };
        assert!(saved.difference(&here).is_some());
    }

    #[test]
    fn differing_tsc_frequency_is_scaled_or_refused() {
        assert_eq!(tsc_to_set(Some(2_000_000), Some(2_000_000), false), Ok(None));
        assert_eq!(tsc_to_set(Some(2_000_000), Some(2_000_500), false), Ok(None));
        assert_eq!(tsc_to_set(Some(2_000_000), Some(2_000_500), true), Ok(Some(2_000_000)));
        assert_eq!(tsc_to_set(Some(2_000_000), Some(2_400_000), true), Ok(Some(2_000_000)));
        let reason = tsc_to_set(Some(2_000_000), Some(2_400_000), false).unwrap_err();
        assert!(reason.contains("2000000 kHz") && reason.contains("2400000 kHz"), "{reason}");
        assert_eq!((tsc_to_set(None, Some(1), false), tsc_to_set(Some(1), None, true)), (Ok(None), Ok(None)));
    }

    #[test]
    fn microcode_is_compared_when_both_are_known() {
        let with = |microcode| Processor { microcode, ..Processor::of_host(None) };
        let reason = with(Some(0x2b00)).difference(&with(Some(0x2c00))).unwrap();
        assert!(reason.contains("revision 0x2b00") && reason.contains("0x2c00"), "{reason}");
        assert_eq!(with(Some(1)).difference(&with(Some(1))), None);
        assert_eq!(with(Some(1)).difference(&with(None)), None);
        assert_eq!(with(None).difference(&with(Some(1))), None);
    }
}
