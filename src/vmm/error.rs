//! The VMM's error: one variant per cause, with the invalid value in the message.

use std::io;
use std::path::PathBuf;

use crate::boot::BootError;
use crate::console_socket::ConsoleSocketError;
use crate::cpu::state::StateError;
use crate::disk_slots::SlotError;
use crate::memory::MemoryError;
use crate::resources::ResourceError;
use crate::sandbox::SandboxError;
use crate::snapshot::SnapshotError;
use crate::virtio::vsock::VsockError;
use disk::BlockError;
use machine::config::ConfigError;
use machine::control::ControlError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid machine configuration: {0}")]
    Config(#[from] ConfigError),
    #[error("cannot open /dev/kvm: {0}")]
    OpenKvm(#[source] io::Error),
    /// For example, because another hypervisor is using the CPU's virtualization extensions.
    #[error("KVM failed to create a virtual machine: {0}")]
    CreateVm(#[source] kvm_ioctls::Error),
    #[error("KVM failed to {what}: {source}")]
    Kvm { what: &'static str, source: kvm_ioctls::Error },
    #[error("this host's KVM does not support {0}; run `wisp doctor` for details")]
    Capability(&'static str),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Resource(#[from] ResourceError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Console(#[from] ConsoleSocketError),
    #[error("cannot access {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// Usually, the process has reached a resource limit.
    #[error("cannot {what}: {source}")]
    Host { what: &'static str, source: io::Error },
}

impl Error {
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { what, source }
    }

    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Host { what, source }
    }
}
