//! Can this host run guests? What is missing, and which command mends it.
//!
//! Reading and judging are apart: [`facts`] looks at the host and judges nothing, [`access`] and
//! [`findings`] judge facts and read nothing, so that every case is tested with made-up facts.
//! Nothing here changes the host: directories are not created, modules are not loaded.

pub mod access;
pub mod facts;
pub mod findings;
pub mod mend;
mod parse;

use std::path::PathBuf;

pub use access::KvmAccessError;
pub(crate) use facts::is_installed;
pub use facts::{Facts, NamespaceSetting};
pub use findings::{Finding, Status};
pub use mend::Mend;

use crate::ec2::HostCapacity;
use facts::{KvmDepth, Surroundings};

/// Whether guests can be started, as far as KVM goes; the error says what to do.
///
/// Opens `/dev/kvm` and asks for what the monitor needs, which takes microseconds. It creates no
/// virtual machine, which took 15 ms where measured and so does not belong before every launch:
/// if that fails later, [`create_vm_error`] finds the same words for it.
pub fn kvm_access() -> Result<(), KvmAccessError> {
    access::judge(&facts::kvm(KvmDepth::Open), &Surroundings::read())
}

/// What to tell a person whose virtual machine KVM refused to create.
pub fn create_vm_error(errno: i32) -> KvmAccessError {
    let errno = rustix::io::Errno::from_raw_os_error(errno);
    access::create_vm_error(errno, &Surroundings::read())
}

/// Whether KVM works here without the CPU's help. Guest kernels are then emulated: they boot
/// many times slower, while guest programs run at full speed.
pub fn is_software_kvm() -> bool {
    let surroundings = Surroundings::read();
    facts::kvm_node().is_some() && access::is_software(&surroundings.cpu)
}

/// CPUs and memory that guests could have now.
pub fn resources() -> HostCapacity {
    HostCapacity { cpus: facts::usable_cpus(), memory_mib: facts::memory_available_mib() }
}

/// The processor's name, and the bytes of its last cache.
pub fn processor() -> (String, Option<u64>) {
    (Surroundings::read().cpu.model, facts::last_cache_bytes())
}

/// Where Wisp keeps its data: `$WISP_HOME`, else `$XDG_DATA_HOME/wisp`, else
/// `~/.local/share/wisp`; none where no such variable is set.
pub fn data_directory() -> Option<PathBuf> {
    parse::data_directory(|name| std::env::var_os(name))
}

/// Everything there is to say about this host.
pub fn examine() -> Vec<Finding> {
    findings::judge(&Facts::read(data_directory()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_cpu_and_some_memory() {
        let resources = resources();
        assert!(resources.cpus >= 1);
        assert!(resources.memory_mib > 0);
    }

    #[test]
    fn looking_at_this_host_finds_something_to_say_about_each_part() {
        let findings = examine();
        for name in ["CPU", "Virtualisation", "/dev/kvm", "Memory", "Data directory"] {
            assert!(findings.iter().any(|finding| finding.name == name), "{name}");
        }
    }
}
