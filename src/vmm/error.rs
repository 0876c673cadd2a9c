//! The VMM's error: one variant per cause, each a sentence with the value that was wrong.

use std::io;
use std::path::PathBuf;

use crate::vmm::boot::BootError;
use crate::vmm::config::ConfigError;
use crate::vmm::console_socket::ConsoleSocketError;
use crate::vmm::control::ControlError;
use crate::vmm::cpu::state::StateError;
use crate::vmm::disk_slots::SlotError;
use crate::vmm::memory::MemoryError;
use crate::vmm::sandbox::SandboxError;
use crate::vmm::snapshot::SnapshotError;
use crate::vmm::virtio::block::BlockError;
use crate::vmm::virtio::vsock::VsockError;

/// The reason why a machine cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("the machine's configuration is wrong: {0}")]
    Config(#[from] ConfigError),
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm cannot be opened: {0}")]
    OpenKvm(#[source] io::Error),
    /// KVM cannot create a virtual machine; another hypervisor may use the CPU's extensions.
    #[error("KVM refused to create a virtual machine: {0}")]
    CreateVm(#[source] kvm_ioctls::Error),
    /// A KVM ioctl failed.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// The operation.
        what: &'static str,
        /// The ioctl's error.
        source: kvm_ioctls::Error,
    },
    /// KVM lacks a required capability.
    #[error("this host's KVM lacks {0}; `wisp doctor` lists what is needed")]
    Capability(&'static str),
    /// Guest memory cannot be allocated.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel, the initrd or the command line cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk cannot be opened.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The vsock device cannot be created.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// KVM cannot get or set a vCPU's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A disk cannot be switched to an overlay.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The machine cannot be saved or restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The control socket cannot be created.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The sandbox cannot be entered.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The console socket cannot be created.
    #[error(transparent)]
    Console(#[from] ConsoleSocketError),
    /// A file of the machine cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An eventfd, epoll instance or thread cannot be created: the process is at one of its limits.
    #[error("the host refused {what}: {source}")]
    Host {
        /// The resource.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Converts errors of KVM ioctls.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { what, source }
    }

    /// Converts errors of host system calls.
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Host { what, source }
    }
}
