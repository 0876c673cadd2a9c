//! Sets model-specific registers, some of which KVM may refuse.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};

/// Sets registers in order, skips those that KVM refuses, and returns the refused ones. `set` is KVM_SET_MSRS, which
/// stops at the first refused register and returns the number of registers set.
pub(super) fn set_each<E>(
    entries: &[kvm_msr_entry],
    mut set: impl FnMut(&Msrs) -> Result<usize, E>,
) -> Result<Vec<kvm_msr_entry>, E> {
    let (mut refused, mut left) = (Vec::new(), entries);
    while !left.is_empty() {
        let some = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let count = set(&Msrs::from_entries(some).expect("a part is within KVM's limit"))?.min(some.len());
        refused.extend(some.get(count));
        left = &left[(count + usize::from(count < some.len()))..];
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u32) -> kvm_msr_entry {
        kvm_msr_entry { index, ..Default::default() }
    }

    #[test]
    fn registers_after_a_refused_one_are_set() {
        let mut taken = Vec::new();
        let mut set = |msrs: &Msrs| {
            let good = msrs.as_slice().iter().take_while(|msr| msr.index % 100 != 7);
            let before = taken.len();
            taken.extend(good.map(|msr| msr.index));
            Ok::<_, ()>(taken.len() - before)
        };
        let entries: Vec<_> = (0..1000).map(entry).collect();
        let refused = set_each(&entries, &mut set).unwrap();
        let refused: Vec<_> = refused.iter().map(|msr| msr.index).collect();
        assert_eq!(refused, (0..10).map(|hundred| 100 * hundred + 7).collect::<Vec<u32>>());
        assert_eq!(taken, (0..1000).filter(|index| index % 100 != 7).collect::<Vec<u32>>());
    }

    #[test]
    fn set_each_returns_refused_last_register_and_error() {
        let refused = set_each(&[entry(1), entry(2)], |msrs| Ok::<_, ()>(msrs.as_slice().len() - 1)).unwrap();
        assert_eq!(refused.iter().map(|msr| msr.index).collect::<Vec<_>>(), [2]);
        assert_eq!(set_each(&[entry(1)], |_| Err("no vCPU")), Err("no vCPU"));
        assert!(set_each(&[], |_| Err(())).unwrap().is_empty());
    }
}
