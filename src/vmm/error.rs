//! The room's error: one variant a cause, each a sentence with the value that was wrong.

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

/// Why a machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not a machine.
    #[error("the machine's configuration is wrong: {0}")]
    Config(#[from] ConfigError),
    /// `/dev/kvm` could not be opened.
    #[error("/dev/kvm cannot be opened: {0}")]
    OpenKvm(#[source] io::Error),
    /// KVM would not make a virtual machine: another hypervisor may hold the CPU's extensions.
    #[error("KVM refused to create a virtual machine: {0}")]
    CreateVm(#[source] kvm_ioctls::Error),
    /// A KVM ioctl failed.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked of KVM.
        what: &'static str,
        /// The ioctl's error.
        source: kvm_ioctls::Error,
    },
    /// KVM lacks what a machine needs.
    #[error("this host's KVM lacks {0}; `wisp doctor` lists what is needed")]
    Capability(&'static str),
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel, the initrd or the command line could not be put in place.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk could not be opened.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The vsock device could not be made.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// KVM would not give or take a vCPU's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A disk could not be continued in a layer.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The machine could not be saved or restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The control socket could not be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process would have kept more than it may.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The console's socket could not be made.
    #[error(transparent)]
    Console(#[from] ConsoleSocketError),
    /// A file of the machine's own could not be written.
    #[error("{} cannot be written: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An eventfd, epoll or thread could not be had: the process is at one of its limits.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on KVM ioctls.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { what, source }
    }

    /// For `map_err` on host calls.
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Host { what, source }
    }
}
