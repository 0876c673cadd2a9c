//! Pins a VM's vCPU threads to host CPUs, so that guests that are compared run on the same CPUs.

use std::fs;
use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("usable CPUs: {cpus}, vCPUs: {vcpus}")]
    FewerCpus { cpus: usize, vcpus: u32 },
    #[error("cannot find the threads of the vCPUs")]
    NoThreads,
    #[error("cannot set the CPU affinity: {0}")]
    Affinity(#[source] io::Error),
}

/// Pins the vCPU threads of the VMM that is a child of `supervisor`: the first vCPU to the first usable CPU, and so on.
/// Returns the CPUs.
pub(super) fn pin(supervisor: u32, vcpus: u32) -> Result<Vec<usize>, PinError> {
    let affinity = |error: rustix::io::Errno| PinError::Affinity(error.into());
    let usable = sched_getaffinity(None).map_err(affinity)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| usable.is_set(*cpu)).collect();
    let wanted = usize::try_from(vcpus).ok().and_then(|count| cpus.get(..count));
    let wanted = wanted.ok_or(PinError::FewerCpus { cpus: cpus.len(), vcpus })?;
    let threads = vcpu_threads(supervisor);
    for (vcpu, cpu) in wanted.iter().enumerate() {
        let named = format!("vcpu{vcpu}");
        let (_, thread) = threads.iter().find(|(name, _)| *name == named).ok_or(PinError::NoThreads)?;
        let mut set = CpuSet::new();
        set.set(*cpu);
        sched_setaffinity(Some(*thread), &set).map_err(affinity)?;
    }
    Ok(wanted.to_vec())
}

/// Returns the names and IDs of the threads of a process's children. The kernel reports the children, so a VMM cannot
/// name another process's threads.
fn vcpu_threads(supervisor: u32) -> Vec<(String, Pid)> {
    let children = task_ids(supervisor).into_iter().flat_map(|task| {
        let text = fs::read_to_string(format!("/proc/{supervisor}/task/{task}/children")).unwrap_or_default();
        text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()).collect::<Vec<_>>()
    });
    let named = |child: u32, task: u32| {
        let name = fs::read_to_string(format!("/proc/{child}/task/{task}/comm")).ok()?;
        Some((name.trim_end().to_owned(), Pid::from_raw(i32::try_from(task).ok()?)?))
    };
    children.flat_map(|child| task_ids(child).into_iter().filter_map(move |task| named(child, task))).collect()
}

fn task_ids(process: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    #[test]
    fn more_vcpus_than_usable_cpus_are_refused() {
        assert!(matches!(pin(process::id(), u32::MAX), Err(PinError::FewerCpus { vcpus: u32::MAX, .. })));
    }

    #[test]
    fn process_without_vcpu_threads_is_refused() {
        assert!(matches!(pin(process::id(), 1), Err(PinError::NoThreads)));
    }

    #[test]
    fn threads_of_children_are_found_by_name() {
        let mut child = process::Command::new("sleep").arg("600").spawn().unwrap();
        // The name changes from this test's to the program's at exec, which spawn() has awaited.
        let threads = vcpu_threads(process::id());
        let id = Pid::from_child(&child);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(threads.contains(&("sleep".into(), id)), "{threads:?}");
    }
}
