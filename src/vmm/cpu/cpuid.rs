//! What a guest's CPUID instruction answers: what KVM supports on this host, with the machine's own topology.
//!
//! One socket; vCPU n has local APIC id n; threads of a core have neighbouring ids. Sources: Intel SDM volume 2A,
//! "CPUID"; AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::vmm::config::CpuConfig;

/// Leaf 1, ECX: the TSC-deadline mode of the local APIC timer, and "there is a hypervisor".
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: several logical processors in a package.
const HTT: u32 = 1 << 28;
/// Leaf 0xb and 0x1f, ECX bits 15:8: the kinds of levels.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The CPUID of vCPU `id` of a machine with `cpus`, made from what KVM supports.
pub fn for_vcpu(supported: &CpuId, id: u32, cpus: CpuConfig) -> CpuId {
    let topology = Topology::new(id, cpus);
    let mut entries: Vec<kvm_cpuid_entry2> =
        supported.as_slice().iter().filter(|entry| !matches!(entry.function, 0xb | 0x1f)).copied().collect();
    for entry in &mut entries {
        topology.apply(entry);
    }
    let max_leaf = supported.as_slice().iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    for leaf in [0xb, 0x1f] {
        if max_leaf >= leaf {
            entries.extend(topology.extended_leaf(leaf));
        }
    }
    CpuId::from_entries(&entries).expect("KVM's own entries and six more are within KVM's limit")
}

/// A vCPU's place.
#[derive(Debug, Clone, Copy)]
struct Topology {
    apic_id: u32,
    count: u32,
    threads_per_core: u32,
    thread_bits: u32,
    package_bits: u32,
}

impl Topology {
    fn new(id: u32, cpus: CpuConfig) -> Topology {
        let bits = |count: u32| count.next_power_of_two().trailing_zeros();
        Topology {
            apic_id: id,
            count: cpus.count,
            threads_per_core: cpus.threads_per_core,
            thread_bits: bits(cpus.threads_per_core),
            package_bits: bits(cpus.count),
        }
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x1 => {
                let ids = 1 << self.package_bits;
                entry.ebx = (entry.ebx & 0x0000_ffff) | (ids << 16) | (self.apic_id << 24);
                entry.ecx |= TSC_DEADLINE | HYPERVISOR;
                entry.edx = if self.count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Intel's cache leaf: who shares a cache (25:14), and how many core ids a package has (31:26).
            0x4 if entry.eax & 0x1f != 0 => {
                let shared = self.cache_sharing((entry.eax >> 5) & 7);
                let cores = 1 << (self.package_bits - self.thread_bits);
                entry.eax = (entry.eax & 0x3fff) | ((shared - 1) << 14) | ((cores - 1) << 26);
            }
            // AMD: threads in the package, and the width of its ids.
            0x8000_0008 => entry.ecx = (self.count - 1) | (self.package_bits << 12),
            // AMD's cache leaf: who shares a cache (25:14).
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = self.cache_sharing((entry.eax >> 5) & 7);
                entry.eax = (entry.eax & 0x3fff) | ((shared - 1) << 14);
            }
            // AMD: APIC id, core id with threads per core, one node.
            0x8000_001e => {
                entry.eax = self.apic_id;
                entry.ebx = ((self.threads_per_core - 1) << 8) | (self.apic_id >> self.thread_bits);
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// How many vCPUs share a cache of this level: the first two belong to a core, the rest to the package.
    fn cache_sharing(&self, level: u32) -> u32 {
        if level <= 2 { self.threads_per_core } else { 1 << self.package_bits }
    }

    /// Leaf 0xb or 0x1f: the thread level, the core level, the end.
    fn extended_leaf(&self, function: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |index, kind: u32, shift, logical| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: logical,
            ecx: index | (kind << 8),
            edx: self.apic_id,
            ..Default::default()
        };
        [
            level(0, LEVEL_THREAD, self.thread_bits, self.threads_per_core),
            level(1, LEVEL_CORE, self.package_bits, self.count),
            level(2, 0, 0, 0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        CpuId::from_entries(&[leaf(0, 0x1f), leaf(1, 0), leaf(4, 0x21), leaf(0x8000_0008, 0), leaf(0x8000_001e, 0)])
            .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let cpus = CpuConfig { count: 4, threads_per_core: 2 };
        for id in 0..4 {
            let cpuid = for_vcpu(&supported(), id, cpus);
            assert_eq!(leaf(&cpuid, 1, 0).ebx >> 24, id);
            assert_eq!(leaf(&cpuid, 0xb, 0).edx, id);
            assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn two_threads_share_a_core() {
        let cpuid = for_vcpu(&supported(), 3, CpuConfig { count: 8, threads_per_core: 2 });
        let (threads, cores) = (leaf(&cpuid, 0xb, 0), leaf(&cpuid, 0xb, 1));
        assert_eq!((threads.eax, threads.ebx, cores.eax, cores.ebx), (1, 2, 3, 8));
        assert_eq!(leaf(&cpuid, 0x8000_001e, 0).ebx, (1 << 8) | 1);
        assert_eq!((leaf(&cpuid, 4, 0).eax >> 26) + 1, 4, "cores in the package");
    }

    #[test]
    fn a_single_vcpu_is_not_hyper_threaded() {
        let cpuid = for_vcpu(&supported(), 0, CpuConfig { count: 1, threads_per_core: 1 });
        assert_eq!(leaf(&cpuid, 1, 0).edx & HTT, 0);
        assert_ne!(leaf(&cpuid, 1, 0).ecx & HYPERVISOR, 0);
    }
}
