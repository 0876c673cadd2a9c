//! The guest's CPUID: the features that KVM supports on this host, except hidden ones, with the machine's topology.
//!
//! There is one socket. vCPU n has local APIC ID n, and the threads of a core have adjacent IDs. Sources: Intel SDM
//! volume 2A, "CPUID"; AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use machine::config::CpuConfig;

/// Leaf 1, ECX: the TSC-deadline mode of the local APIC timer, and the bit that marks a hypervisor's guest.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaves 0xb and 0x1f, ECX bits 15:8: level types.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Leaves that are hidden because guests do not have the features: the PMU (0xa, 0x23, 0x8000_0022), SGX (0x12),
/// processor trace (0x14), branch records (0x1c), AMX (0x1d, 0x1e), SVM (0x8000_000a), sampling (0x8000_001b),
/// profiling (0x8000_001c) and encrypted guests (0x8000_001f).
const HIDDEN_LEAVES: [u32; 12] =
    [0xa, 0x12, 0x14, 0x1c, 0x1d, 0x1e, 0x23, 0x8000_000a, 0x8000_001b, 0x8000_001c, 0x8000_001f, 0x8000_0022];
/// Extended states that guests do not have: processor trace, user and supervisor shadow stacks, branch records, AMX
/// configuration and AMX tiles. The number is both the subleaf of leaf 0xd and the bit in XCR0 or IA32_XSS.
const HIDDEN_STATES: [u32; 6] = [8, 11, 12, 15, 17, 18];

/// Feature bits that are hidden, as leaf, index, and masks of EAX, EBX, ECX and EDX: nested virtualization, to reduce
/// KVM's attack surface; the PMU and related features; and features whose state is not saved in a snapshot.
const HIDDEN: [(u32, u32, [u32; 4]); 5] = [
    // DTES64, DS-CPL, VMX, SMX, PDCM; DS.
    (0x1, 0, [0, 0, 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 15, 1 << 21]),
    // SGX, processor trace; shadow stacks, SGX launch control; SGX keys, branch records, IBT, AMX.
    (0x7, 0, [0, 1 << 2 | 1 << 25, 1 << 7 | 1 << 30, 1 << 1 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25]),
    // Leaf 0x23, AMX; AMX, supervisor shadow stacks.
    (0x7, 1, [1 << 8 | 1 << 21, 0, 0, 1 << 8 | 1 << 18]),
    // XFD, which only AMX uses; IA32_XSS states.
    (0xd, 1, [1 << 4, 0, 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15, 0]),
    // SVM, sampling, SKINIT, profiling; performance counters of cores, northbridge, TSC and last-level cache.
    (0x8000_0001, 0, [0, 0, 1 << 2 | 1 << 10 | 1 << 12 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 27 | 1 << 28, 0]),
];

fn is_hidden(entry: &kvm_cpuid_entry2) -> bool {
    HIDDEN_LEAVES.contains(&entry.function) || entry.function == 0xd && HIDDEN_STATES.contains(&entry.index)
}

fn hide(entry: &mut kvm_cpuid_entry2) {
    for (_, _, bits) in HIDDEN.iter().filter(|(leaf, index, _)| (*leaf, *index) == (entry.function, entry.index)) {
        let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
        registers.into_iter().zip(bits).for_each(|(register, bits)| *register &= !bits);
    }
    if (entry.function, entry.index) == (0xd, 0) {
        entry.eax &= !HIDDEN_STATES.iter().fold(0, |bits, state| bits | 1 << state);
    }
}

/// Registers in which each bit is a feature, as leaf, index, and masks of EAX, EBX, ECX and EDX.
const FEATURES: [(u32, u32, [u32; 4]); 11] = {
    const ALL: u32 = u32::MAX;
    [
        (0x1, 0, [0, 0, ALL, ALL]),
        (0x7, 0, [0, ALL, ALL, ALL]),
        (0x7, 1, [ALL; 4]),
        (0x7, 2, [0, 0, 0, ALL]),
        (0xd, 0, [ALL, 0, 0, ALL]),
        (0xd, 1, [ALL, 0, ALL, ALL]),
        // KVM's features: kvmclock, asynchronous page faults and others.
        (0x4000_0001, 0, [ALL, 0, 0, 0]),
        (0x8000_0001, 0, [0, 0, ALL, ALL]),
        (0x8000_0007, 0, [0, 0, 0, ALL]),
        (0x8000_0008, 0, [0, ALL, 0, 0]),
        (0x8000_0021, 0, [ALL, 0, 0, 0]),
    ]
};

/// Describes the first difference by which a guest with the CPUID `saved` could not run with `here`: a missing feature,
/// another layout of an extended state, or shorter physical addresses.
pub fn missing(saved: &[kvm_cpuid_entry2], here: &CpuId) -> Option<String> {
    let registers = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    let find = |function, index| {
        let found = here.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index));
        found.map_or([0; 4], registers)
    };
    for entry in saved {
        let (function, index) = (entry.function, entry.index);
        let (had, has) = (registers(entry), find(function, index));
        let features = FEATURES.iter().find(|(leaf, part, _)| (*leaf, *part) == (function, index));
        let masks = features.map_or([0; 4], |(.., masks)| *masks);
        for (register, name) in ["EAX", "EBX", "ECX", "EDX"].iter().enumerate() {
            let lost = had[register] & !has[register] & masks[register];
            if lost != 0 {
                return Some(format!("leaf {function:#x}.{index}, bits {lost:#x} of {name}"));
            }
        }
        if function == 0xd && index >= 2 && had[0] != 0 && had[..3] != has[..3] {
            return Some(format!("leaf {function:#x}.{index}, extended state layout {had:x?}, on this host {has:x?}"));
        }
        let width = |[eax, ..]: [u32; 4]| eax & 0xff;
        if function == 0x8000_0008 && width(had) > width(has) {
            return Some(format!("physical addresses of {} bits, on this host {}", width(had), width(has)));
        }
    }
    None
}

pub fn for_vcpu(supported: &CpuId, id: u32, cpus: CpuConfig) -> CpuId {
    let topology = Topology::new(id, cpus, is_amd(supported));
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f) && !is_hidden(entry))
        .copied()
        .collect();
    for entry in &mut entries {
        hide(entry);
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

/// Returns true if leaf 0 has the vendor name of AMD or Hygon.
fn is_amd(supported: &CpuId) -> bool {
    let name = supported.as_slice().iter().find(|entry| entry.function == 0);
    let name = name.map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat());
    name.is_some_and(|name| [b"AuthenticAMD", b"HygonGenuine"].iter().any(|amd| name == *amd))
}

#[derive(Debug, Clone, Copy)]
struct Topology {
    apic_id: u32,
    count: u32,
    threads_per_core: u32,
    thread_bits: u32,
    package_bits: u32,
    is_amd: bool,
}

impl Topology {
    fn new(id: u32, cpus: CpuConfig, is_amd: bool) -> Topology {
        let bits = |count: u32| count.next_power_of_two().trailing_zeros();
        Topology {
            apic_id: id,
            count: cpus.count,
            threads_per_core: cpus.threads_per_core,
            thread_bits: bits(cpus.threads_per_core),
            package_bits: bits(cpus.count),
            is_amd,
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
            // Intel's cache leaf, less 1 each: threads that share the cache (25:14), core IDs in the package (31:26).
            0x4 if entry.eax & 0x1f != 0 => {
                let shared = self.cache_sharing((entry.eax >> 5) & 7);
                let cores = 1 << (self.package_bits - self.thread_bits);
                entry.eax = (entry.eax & 0x3fff) | ((shared - 1) << 14) | ((cores - 1) << 26);
            }
            // AMD: the number of threads in the package less 1, and the width of their IDs. Reserved on Intel.
            0x8000_0008 if self.is_amd => entry.ecx = (self.count - 1) | (self.package_bits << 12),
            // AMD's cache leaf: the number of threads that share the cache (25:14), less 1.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = self.cache_sharing((entry.eax >> 5) & 7);
                entry.eax = (entry.eax & 0x3fff) | ((shared - 1) << 14);
            }
            // AMD: the APIC ID, the core ID with the threads per core, and one node.
            0x8000_001e => {
                entry.eax = self.apic_id;
                entry.ebx = ((self.threads_per_core - 1) << 8) | (self.apic_id >> self.thread_bits);
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Returns the number of vCPUs that share a cache: a core's for levels 1 and 2, the package's for other levels.
    fn cache_sharing(&self, level: u32) -> u32 {
        if level <= 2 { self.threads_per_core } else { 1 << self.package_bits }
    }

    /// Returns the subleaves of leaf 0xb or 0x1f: the thread level, the core level and the end of the list.
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

    const ONE: CpuConfig = CpuConfig { count: 1, threads_per_core: 1 };

    /// Returns the CPUID of a processor with all features.
    fn full() -> CpuId {
        let ones = u32::MAX;
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: ones,
            ebx: ones,
            ecx: ones,
            edx: ones,
            ..Default::default()
        };
        let mut leaves = vec![leaf(0, 0), leaf(7, 0), leaf(7, 1), leaf(0x4000_0001, 0)];
        leaves.extend((1..=0x24).filter(|function| ![4, 7, 0xb, 0xd, 0x1f].contains(function)).map(|one| leaf(one, 0)));
        leaves.extend((0..20).map(|state| leaf(0xd, state)));
        leaves.extend((0x8000_0000..=0x8000_0022).map(|function| leaf(function, 0)));
        CpuId::from_entries(&leaves).unwrap()
    }

    #[test]
    fn nested_virtualization_and_performance_counters_are_hidden() {
        let cpuid = for_vcpu(&full(), 0, ONE);
        let basic = leaf(&cpuid, 1, 0);
        assert_eq!((basic.ecx & (1 << 5 | 1 << 15), basic.edx & 1 << 21), (0, 0), "VMX, PDCM, DS");
        let extended = leaf(&cpuid, 0x8000_0001, 0);
        assert_eq!(extended.ecx & (1 << 2 | 1 << 23 | 1 << 24 | 1 << 28), 0, "SVM, counters");
        for hidden in [0xa, 0x23, 0x8000_000a, 0x8000_0022] {
            assert!(cpuid.as_slice().iter().all(|entry| entry.function != hidden), "{hidden:#x}");
        }
        // Other features are not hidden.
        assert_eq!((basic.ecx & 1, leaf(&cpuid, 7, 0).ebx & 1 << 5, extended.edx & 1 << 29), (1, 1 << 5, 1 << 29));
    }

    #[test]
    fn states_missing_from_snapshots_are_hidden() {
        let cpuid = for_vcpu(&full(), 0, ONE);
        let features = leaf(&cpuid, 7, 0);
        assert_eq!(features.ebx & (1 << 2 | 1 << 25), 0, "SGX, processor trace");
        assert_eq!(features.ecx & 1 << 7, 0, "shadow stacks");
        assert_eq!(features.edx & (1 << 19 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25), 0, "branch records, IBT, AMX");
        assert_eq!(leaf(&cpuid, 0xd, 0).eax & (1 << 17 | 1 << 18), 0, "AMX");
        assert_eq!(leaf(&cpuid, 0xd, 1).ecx & (1 << 8 | 1 << 11 | 1 << 12 | 1 << 15), 0);
        let states: Vec<u32> =
            cpuid.as_slice().iter().filter(|entry| entry.function == 0xd).map(|entry| entry.index).collect();
        assert!(HIDDEN_STATES.iter().all(|state| !states.contains(state)), "{states:?}");
        assert!([2, 5, 9].iter().all(|state| states.contains(state)), "AVX, AVX-512, PKRU");
    }

    #[test]
    fn missing_reports_features_that_host_lacks() {
        let saved = for_vcpu(&full(), 0, ONE);
        assert_eq!(missing(saved.as_slice(), &saved), None);
        let without = |function, index, change: fn(&mut kvm_cpuid_entry2)| {
            let mut here = full();
            let entries = here.as_mut_slice().iter_mut();
            entries.filter(|entry| (entry.function, entry.index) == (function, index)).for_each(change);
            missing(saved.as_slice(), &for_vcpu(&here, 0, ONE))
        };
        // Speculation control, a mitigation.
        assert_eq!(without(7, 0, |leaf| leaf.edx &= !(1 << 26)).unwrap(), "leaf 0x7.0, bits 0x4000000 of EDX");
        assert_eq!(without(0xd, 0, |leaf| leaf.eax &= !4).unwrap(), "leaf 0xd.0, bits 0x4 of EAX");
        assert!(without(0xd, 2, |leaf| leaf.ebx = 576).unwrap().contains("leaf 0xd.2"));
        assert!(without(0x4000_0001, 0, |leaf| leaf.eax = 0).is_some());
        assert!(without(0x8000_0008, 0, |leaf| leaf.eax &= !1).unwrap().contains("255 bits"));
        // Hidden bits, and registers that are not features, are not compared.
        assert_eq!(without(1, 0, |leaf| leaf.ecx &= !(1 << 5)), None);
        assert_eq!(without(1, 0, |leaf| leaf.ebx = 0), None);
        // Additional features on the host are accepted.
        assert_eq!(missing(for_vcpu(&supported(), 0, ONE).as_slice(), &saved), None);
    }

    #[test]
    fn package_size_is_set_on_amd_only() {
        let with_name = |name: &[u8; 12]| {
            let word = |at: usize| u32::from_le_bytes(*name[at..].first_chunk().unwrap());
            let mut cpuid = supported();
            let leaf = &mut cpuid.as_mut_slice()[0];
            (leaf.ebx, leaf.edx, leaf.ecx) = (word(0), word(4), word(8));
            for_vcpu(&cpuid, 0, CpuConfig { count: 4, threads_per_core: 2 })
        };
        assert_eq!(leaf(&with_name(b"GenuineIntel"), 0x8000_0008, 0).ecx, 0);
        for amd in [b"AuthenticAMD", b"HygonGenuine"] {
            assert_eq!(leaf(&with_name(amd), 0x8000_0008, 0).ecx, 3 | 2 << 12);
        }
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
    fn single_vcpu_is_not_hyper_threaded() {
        let cpuid = for_vcpu(&supported(), 0, CpuConfig { count: 1, threads_per_core: 1 });
        assert_eq!(leaf(&cpuid, 1, 0).edx & HTT, 0);
        assert_ne!(leaf(&cpuid, 1, 0).ecx & HYPERVISOR, 0);
    }
}
