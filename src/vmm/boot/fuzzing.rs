//! Fuzzing entry points for the kernel loader, because kernel images are untrusted.

use std::fs;

use vm_memory::GuestAddress;

use super::kernel;
use crate::memory::GuestMemory;
use machine::config::{BootProtocol, KernelConfig};

/// The size of guest memory: just enough for a kernel that is loaded at 1 MiB.
const MEMORY_MIB: u64 = 4;

pub fn kernel(data: &[u8]) {
    let Some((first, content)) = data.split_first() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kernel");
    fs::write(&path, content).expect("a file");
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), (MEMORY_MIB << 20) as usize)]).expect("one range");
    let protocol = [BootProtocol::Auto, BootProtocol::Linux64, BootProtocol::Pvh][usize::from(first % 3)];
    let (cmdline, identity_options) = (String::new(), String::new());
    let config = KernelConfig { path, initrd: None, cmdline, identity_options, protocol, software_kvm_aware: false };
    let _ = kernel::load(&memory, &config, MEMORY_MIB);
}
