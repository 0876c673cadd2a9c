//! A snapshot of a machine: one file for its state, and one or two files for its memory.
//!
//! The state file contains a magic number, the format version, the payload's length and SHA-256, and the payload with
//! the typed state of each device. A file of another version, a truncated or modified one, or one of another processor
//! is rejected before anything is built. An unfinished snapshot has no state file.

pub mod copy;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod memory;
pub mod origin;
pub mod processor;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::config::CpuConfig;
use super::cpu::state::VcpuState;
use super::cpu::{cpuid, emulation};
use super::devices::acpi_pm::AcpiPmState;
use super::devices::i8042::I8042State;
use super::devices::rtc::RtcState;
use super::devices::serial::SerialState;
use super::untrusted::{self, Presence};
use super::virtio::mmio::TransportState;
use origin::Differences;
use processor::{CpuIdentity, Processor};

/// The name of the state file in a snapshot's directory.
pub const STATE: &str = "state";
/// The name of the memory file.
pub const MEMORY: &str = "memory";
/// The name of the base snapshot's memory file, if the memory file only contains changed pages.
pub const BASE: &str = "base";

const MAGIC: [u8; 8] = *b"wispsnap";
/// The format version. It changes with every change of the format.
const VERSION: u32 = 3;
const HEADER: usize = 8 + 4 + 8 + 32;
/// The size limit of the state. 64 vCPUs take about 10 KiB each.
const LIMIT: u64 = 64 << 20;

/// A machine's state without its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// The vCPUs' CPUID, and the host's CPU.
    pub identity: CpuIdentity,
    /// The host's time-stamp counter at the time of the snapshot.
    pub counter: u64,
    /// The vCPUs and their topology.
    pub cpus: CpuConfig,
    /// The size of the memory in MiB.
    pub memory_mib: u64,
    /// The memory file's modification time, in seconds and nanoseconds since 1970. It is checked because the content
    /// has no checksum: pages are only read when the guest accesses them. Set when the state is written.
    pub memory_written: Option<(i64, i64)>,
    /// The changed pages, if the memory file only contains those.
    pub differences: Option<Differences>,
    /// The vCPUs in order.
    pub vcpus: Vec<VcpuState>,
    /// The two 8259s and the I/O APIC.
    pub interrupt_controllers: Vec<kvm_irqchip>,
    /// The 8254.
    pub timer: kvm_pit_state2,
    /// The guest's clock.
    pub clock: kvm_clock_data,
    /// The serial port.
    pub serial: SerialState,
    /// The keyboard controller.
    pub i8042: I8042State,
    /// The real-time clock.
    pub rtc: RtcState,
    /// The ACPI registers.
    pub acpi_pm: AcpiPmState,
    /// The guest address of the VM generation id, if the guest uses it.
    pub generation: Option<u64>,
    /// The id of the disk in each slot.
    pub disks: Vec<Option<String>>,
    /// The virtio devices in slot order: disks, entropy, vsock, network.
    pub virtio: Vec<TransportState>,
}

/// The reason why a machine cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read or written.
    #[error("{} cannot be {action}: {source}", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// The operation, as a participle.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a snapshot, or it is damaged, or it cannot be restored on this host.
    #[error("{} is no snapshot that can be used: {reason}", path.display())]
    Unusable {
        /// The state file's path.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The state of a device or vCPU is invalid.
    #[error("the snapshot's state is not a device's: {0}")]
    Device(String),
    /// The snapshot has a disk that the machine lacks.
    #[error("the saved machine had a disk {0:?}, which this one lacks")]
    NoDisk(String),
    /// The machine has a disk that the snapshot lacks.
    #[error("the saved machine had no disk {0:?}; it can be attached when the machine runs")]
    NewDisk(String),
    /// The machine's vCPUs or memory differ from the snapshot's.
    #[error("the snapshot is of a machine with {saved}; this one has {wanted}")]
    OtherMachine {
        /// The snapshot's configuration.
        saved: String,
        /// The requested configuration.
        wanted: String,
    },
}

impl SnapshotError {
    pub(super) fn file(path: &Path, action: &'static str) -> impl Fn(io::Error) -> SnapshotError + use<> {
        let path = path.to_path_buf();
        move |source| SnapshotError::File { path: path.clone(), action, source }
    }
}

impl MachineState {
    /// Writes the state atomically and durably into the directory `directory`, which already contains the memory.
    pub fn write(mut self, dir: &Path) -> Result<(), SnapshotError> {
        self.memory_written = Some(file_written(&dir.join(MEMORY))?);
        let path = dir.join(STATE);
        let failed = SnapshotError::file(&path, "written");
        let payload = postcard::to_allocvec(&self).map_err(|error| failed(io::Error::other(error)))?;
        let mut content = Vec::with_capacity(HEADER + payload.len());
        content.extend(MAGIC);
        content.extend(VERSION.to_le_bytes());
        content.extend((payload.len() as u64).to_le_bytes());
        content.extend(Sha256::digest(&payload));
        content.extend(payload);
        let unfinished = dir.join(format!("{STATE}.new"));
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(failed)
    }

    /// Reads the state in the directory `directory`, and checks that its memory is unchanged and that it fits this host's
    /// CPU.
    pub fn read(dir: &Path) -> Result<MachineState, SnapshotError> {
        let path = dir.join(STATE);
        let unusable = |reason: String| SnapshotError::Unusable { path: path.clone(), reason };
        let content = untrusted::read(&path, LIMIT).map_err(SnapshotError::file(&path, "read"))?;
        let state = parse(&content).map_err(unusable)?;
        if let Some(difference) = state.identity.processor.difference(&Processor::of_host(None)) {
            return Err(unusable(difference));
        }
        // Without software KVM, KVM gives the guest a counter that continues from its saved value.
        if emulation::is_software_kvm() && counter() < state.counter {
            return Err(unusable(
                "the host was restarted since, and its KVM (software KVM) gives guests the host's own time-stamp counter, \
                 which would run backwards for this one"
                    .into(),
            ));
        }
        let base = state.differences.as_ref().map(|differences| (BASE, Some(differences.base_written)));
        for (name, written) in [(MEMORY, state.memory_written)].into_iter().chain(base) {
            if written != Some(file_written(&dir.join(name))?) {
                return Err(unusable(format!("the memory beside it, {name}, was written since")));
            }
        }
        Ok(state)
    }

    /// Rejects the state, which was read from `directory`, if the microcode differs or KVM on this host lacks a feature
    /// of the guest's CPUID.
    pub fn check_host(&self, dir: &Path, kvm: &Kvm) -> Result<(), SnapshotError> {
        let unusable = |reason| SnapshotError::Unusable { path: dir.join(STATE), reason };
        if let Some(difference) = self.identity.processor.difference(&Processor::of_host(Some(kvm))) {
            return Err(unusable(difference));
        }
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| unusable(format!("KVM does not tell which CPU features it supports: {error}")))?;
        for (id, saved) in (0..).zip(&self.identity.cpuid) {
            if let Some(feature) = cpuid::missing(saved, &cpuid::for_vcpu(&supported, id, self.cpus)) {
                return Err(unusable(format!("its guest has a CPU feature that KVM does not give here: {feature}")));
            }
        }
        Ok(())
    }
}

/// Checks that the snapshot in `directory` can be restored on this host, as far as possible without restoring it.
pub fn check(dir: &Path) -> Result<(), SnapshotError> {
    let state = MachineState::read(dir)?;
    // A host without KVM is reported when the machine is started.
    Kvm::new().map_or(Ok(()), |kvm| state.check_host(dir, &kvm))
}

fn file_written(path: &Path) -> Result<(i64, i64), SnapshotError> {
    path.symlink_metadata().map(|metadata| written(&metadata)).map_err(SnapshotError::file(path, "read"))
}

/// Returns a file's modification time in seconds and nanoseconds since 1970.
fn written(metadata: &fs::Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// Invalidates a snapshot durably, so that it is not restored again. Its memory file stays as the base of the machine
/// that is being restored.
pub fn consume(dir: &Path) -> Result<(), SnapshotError> {
    let consume = || {
        fs::remove_file(dir.join(STATE))?;
        File::open(dir)?.sync_all()?;
        let (memory, base) = (dir.join(MEMORY), dir.join(BASE));
        if base.exists() { fs::remove_file(memory) } else { fs::rename(memory, base) }
    };
    consume().map_err(SnapshotError::file(dir, "changed"))
}

/// Moves a snapshot from a VMM's directory into a trusted directory on the same file system. The VMM can then no
/// longer replace its files by links. The state file is moved last, because it makes the snapshot valid.
pub fn take(from: &Path, to: &Path) -> io::Result<()> {
    use Presence::{Optional, Required};
    untrusted::take(from, to, &[(BASE, Optional), (MEMORY, Required), (STATE, Required)])
}

/// Returns the disk space of a snapshot in bytes.
pub fn bytes(dir: &Path) -> u64 {
    let files = [STATE, MEMORY, BASE].map(|name| dir.join(name).symlink_metadata());
    files.iter().flatten().map(|metadata| metadata.blocks() * 512).sum()
}

/// Removes a snapshot, even an incomplete one. The state file is removed first, so that the rest is not a valid
/// snapshot.
pub fn remove(dir: &Path) -> io::Result<()> {
    if dir.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        untrusted::remove_in(dir, STATE)?;
    }
    untrusted::remove(dir)
}

/// Ignores that a removed file did not exist.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn parse(content: &[u8]) -> Result<MachineState, String> {
    let Some((header, payload)) = content.split_at_checked(HEADER) else {
        return Err(format!("it ends after {} bytes", content.len()));
    };
    if header[..8] != MAGIC {
        return Err("it does not begin as one".into());
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(format!(
            "another version of wisp saved it (the format's version is {version}, and this wisp reads version {VERSION})"
        ));
    }
    let length = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
    if length != payload.len() as u64 {
        return Err(format!("it has {} bytes where {length} belong", payload.len()));
    }
    if header[20..] != Sha256::digest(payload)[..] {
        return Err("its SHA-256 is another: it was altered".into());
    }
    postcard::from_bytes(payload).map_err(|error| error.to_string())
}

/// Reads the processor's time-stamp counter.
pub fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux permits it in user mode.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(version: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u64).to_le_bytes();
        [&MAGIC[..], &version.to_le_bytes(), &length, &Sha256::digest(payload), payload].concat()
    }

    fn refused(content: &[u8]) -> String {
        parse(content).unwrap_err()
    }

    #[test]
    fn what_is_cut_short_altered_or_of_another_version_is_refused_with_the_reason() {
        let whole = content(VERSION, b"a state");
        for length in 0..HEADER {
            assert_eq!(refused(&whole[..length]), format!("it ends after {length} bytes"));
        }
        assert_eq!(refused(&whole[..whole.len() - 1]), "it has 6 bytes where 7 belong");
        let mut altered = whole.clone();
        altered[HEADER] ^= 1;
        assert_eq!(refused(&altered), "its SHA-256 is another: it was altered");
        altered[0] ^= 1;
        assert_eq!(refused(&altered), "it does not begin as one");
        assert_eq!(
            refused(&content(VERSION - 1, b"")),
            "another version of wisp saved it (the format's version is 2, and this wisp reads version 3)"
        );
        assert!(!refused(&content(VERSION, b"")).is_empty(), "no state is that short");
    }
}
