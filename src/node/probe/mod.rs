//! Checks whether this host can run guests, and finds the commands that fix its problems.
//!
//! [`facts`] reads the host; [`access`] and [`findings`] judge the facts. They are separate so that tests can judge
//! made-up facts. Nothing here changes the host.

pub mod access;
pub mod facts;
pub mod findings;
pub mod fix;
mod parse;

use std::path::PathBuf;

pub use access::KvmAccessError;
pub(crate) use facts::is_installed;
pub use facts::{Facts, NamespaceSetting};
pub use findings::{Finding, Severity};
pub use fix::Fix;

use ec2::HostCapacity;
use facts::{HostEnvironment, KvmDepth};

/// Checks that KVM can run guests. Takes microseconds, because it does not create a virtual machine: that takes 15 ms,
/// too long for every launch. If creating one fails later, [`create_vm_error`] explains the failure.
pub fn kvm_access() -> Result<(), KvmAccessError> {
    access::judge(&facts::kvm(KvmDepth::Open), &HostEnvironment::read())
}

pub fn create_vm_error(errno: i32) -> KvmAccessError {
    let errno = rustix::io::Errno::from_raw_os_error(errno);
    access::create_vm_error(errno, &HostEnvironment::read())
}

/// Returns true if `/dev/kvm` exists but the CPU lacks virtualization extensions. Such a KVM emulates guest kernels,
/// which boot many times slower. Guest programs run at full speed.
pub fn is_software_kvm() -> bool {
    let environment = HostEnvironment::read();
    facts::kvm_node().is_some() && access::is_software(&environment.cpu)
}

pub fn resources() -> HostCapacity {
    HostCapacity { cpus: facts::usable_cpus(), memory_mib: facts::memory_available_mib() }
}

/// Returns the CPU's name and the size of its last-level cache in bytes.
pub fn processor() -> (String, Option<u64>) {
    (HostEnvironment::read().cpu.model, facts::last_cache_bytes())
}

/// Returns the first of `$WISP_HOME`, `$XDG_DATA_HOME/wisp` and `$HOME/.local/share/wisp` whose variable is set.
pub fn data_directory() -> Option<PathBuf> {
    parse::data_directory(|name| std::env::var_os(name))
}

pub fn examine() -> Vec<Finding> {
    findings::judge(&Facts::read(data_directory()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_has_cpu_and_memory() {
        let resources = resources();
        assert!(resources.cpus >= 1);
        assert!(resources.memory_mib > 0);
    }

    #[test]
    fn examine_reports_each_part() {
        let findings = examine();
        for name in ["CPU", "Virtualization", "/dev/kvm", "Memory", "Data directory"] {
            assert!(findings.iter().any(|finding| finding.name == name), "{name}");
        }
    }
}
