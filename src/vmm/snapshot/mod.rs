//! A snapshot of a machine: one file for its state, and one or two files for its memory.
//!
//! The state file has a magic number, the format version, the payload's length and SHA-256, and the typed state of each
//! device. A damaged file, or a file from another version or CPU, is rejected before the machine is built. An
//! unfinished snapshot has no state file.

pub mod cancellation;
pub mod copy;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(test)]
mod golden;
pub mod memory;
pub mod origin;
pub mod processor;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kvm_bindings::{CpuId, kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cpu::state::VcpuState;
use super::cpu::{cpuid, emulation};
use super::devices::acpi_pm::AcpiPmState;
use super::devices::i8042::I8042State;
use super::devices::rtc::RtcState;
use super::devices::serial::SerialState;
use super::virtio::transport::TransportState;
use machine::config::CpuConfig;
use machine::snapshot_files::{BASE, MEMORY, STATE};
use machine::untrusted;
use origin::Differences;
use processor::{CpuIdentity, Processor};

const MAGIC: [u8; 8] = *b"wispsnap";
/// Must be incremented with every change to the format.
const VERSION: u32 = 4;
const HEADER: usize = 8 + 4 + 8 + 32;
/// The maximum size of the state file in bytes. Each vCPU's state takes about 10 KiB.
const LIMIT: u64 = 64 << 20;

/// A machine's state, excluding its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub identity: CpuIdentity,
    /// The host's time-stamp counter when the snapshot was taken.
    pub counter: u64,
    pub cpus: CpuConfig,
    pub memory_mib: u64,
    /// The memory file's modification time, in seconds and nanoseconds since 1970; set by [`MachineState::write`]. It
    /// replaces a checksum, because pages are read only when the guest accesses them.
    pub memory_written: Option<(i64, i64)>,
    /// Set by [`MachineState::write`] if the memory file contains only the pages that differ from a base file.
    pub differences: Option<Differences>,
    pub vcpus: Vec<VcpuState>,
    /// The states of the two 8259s and the I/O APIC.
    pub interrupt_controllers: Vec<kvm_irqchip>,
    /// The state of the 8254 timer.
    pub timer: kvm_pit_state2,
    pub clock: kvm_clock_data,
    pub serial: SerialState,
    pub i8042: I8042State,
    pub rtc: RtcState,
    pub acpi_pm: AcpiPmState,
    /// The guest physical address of the generation record, if the guest's kernel has one.
    pub generation: Option<u64>,
    /// The ID of the disk in each slot.
    pub disks: Vec<Option<String>>,
    /// The states of the virtio devices in slot order: disks, entropy, vsock, network, balloon.
    pub virtio: Vec<TransportState>,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        path: PathBuf,
        /// A verb, such as `write`.
        action: &'static str,
        source: io::Error,
    },
    #[error("{} is not a usable snapshot: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("the snapshot cannot be restored: {0}")]
    Device(String),
    #[error("the snapshot has a disk {0:?}, but this machine does not")]
    NoDisk(String),
    #[error("the snapshot has no disk {0:?}; start the machine without it and attach it afterwards")]
    NewDisk(String),
    #[error("the snapshot was taken of a machine with {saved}, but this machine has {wanted}")]
    OtherMachine { saved: String, wanted: String },
}

impl SnapshotError {
    pub(super) fn file(path: &Path, action: &'static str) -> impl Fn(io::Error) -> SnapshotError + use<> {
        let path = path.to_path_buf();
        move |source| SnapshotError::File { path: path.clone(), action, source }
    }
}

impl MachineState {
    /// Writes the state atomically and durably into `dir`, which must already contain the memory files.
    pub fn write(mut self, differences: Option<Differences>, dir: &Path) -> Result<(), SnapshotError> {
        self.differences = differences;
        self.memory_written = Some(file_written(&dir.join(MEMORY))?);
        let path = dir.join(STATE);
        let failed = SnapshotError::file(&path, "write");
        let payload = postcard::to_allocvec(&self).map_err(|error| failed(io::Error::other(error)))?;
        let content = with_header(VERSION, &payload);
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

    /// Reads the state in `dir`. Fails if its memory files have been modified, or if this host's CPU model differs.
    pub fn read(dir: &Path) -> Result<MachineState, SnapshotError> {
        let path = dir.join(STATE);
        let unusable = |reason: String| SnapshotError::Unusable { path: path.clone(), reason };
        let content = untrusted::read(&path, LIMIT).map_err(SnapshotError::file(&path, "read"))?;
        let state = parse(&content).map_err(unusable)?;
        if let Some(difference) = state.identity.processor.difference(&Processor::of_host(None)) {
            return Err(unusable(difference));
        }
        // With hardware KVM, the guest gets a counter that continues from its saved value.
        if emulation::is_software_kvm() && counter() < state.counter {
            return Err(unusable(
                "the host has rebooted since it was taken. Guests on software KVM use the host's time-stamp counter, \
                 which would run backwards for this guest"
                    .into(),
            ));
        }
        let base = state.differences.as_ref().map(|differences| (BASE, Some(differences.base_written)));
        for (name, written) in [(MEMORY, state.memory_written)].into_iter().chain(base) {
            if written != Some(file_written(&dir.join(name))?) {
                return Err(unusable(format!("its memory file, {name}, has been modified since it was taken")));
            }
        }
        Ok(state)
    }

    /// Fails if the CPU or its microcode differs, or if this host's KVM lacks a feature of the guest's CPUID.
    pub fn check_host(&self, dir: &Path, kvm: &Kvm, supported: &CpuId) -> Result<(), SnapshotError> {
        let unusable = |reason| SnapshotError::Unusable { path: dir.join(STATE), reason };
        if let Some(difference) = self.identity.processor.difference(&Processor::of_host(Some(kvm))) {
            return Err(unusable(difference));
        }
        for (id, saved) in (0..).zip(&self.identity.cpuid) {
            if let Some(feature) = cpuid::missing(saved, &cpuid::for_vcpu(supported, id, self.cpus)) {
                return Err(unusable(format!(
                    "this host's KVM does not support a CPU feature that the saved guest was given: {feature}"
                )));
            }
        }
        Ok(())
    }
}

/// Checks that the snapshot in `dir` can be restored on this host, as far as possible without restoring it.
pub fn check(dir: &Path) -> Result<(), SnapshotError> {
    let state = MachineState::read(dir)?;
    // If the host has no KVM, starting the machine reports that.
    let Ok(kvm) = Kvm::new() else { return Ok(()) };
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(|error| {
        let reason = format!("cannot list the CPU features that KVM supports: {error}");
        SnapshotError::Unusable { path: dir.join(STATE), reason }
    })?;
    state.check_host(dir, &kvm, &supported)
}

fn file_written(path: &Path) -> Result<(i64, i64), SnapshotError> {
    path.symlink_metadata().map(|metadata| written(&metadata)).map_err(SnapshotError::file(path, "read"))
}

/// Returns the modification time in seconds and nanoseconds since 1970.
fn written(metadata: &fs::Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// Durably invalidates a snapshot that may be restored only once. Its complete memory file stays as the base for later
/// snapshots of the restored machine.
pub fn consume(dir: &Path) -> Result<(), SnapshotError> {
    let consume = || {
        fs::remove_file(dir.join(STATE))?;
        File::open(dir)?.sync_all()?;
        let (memory, base) = (dir.join(MEMORY), dir.join(BASE));
        if base.exists() { fs::remove_file(memory) } else { fs::rename(memory, base) }
    };
    consume().map_err(SnapshotError::file(dir, "modify"))
}

fn with_header(version: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [&MAGIC[..], &version.to_le_bytes(), &length, &Sha256::digest(payload), payload].concat()
}

fn parse(content: &[u8]) -> Result<MachineState, String> {
    let Some((header, payload)) = content.split_at_checked(HEADER) else {
        return Err(format!("it is truncated to {} bytes", content.len()));
    };
    if header[..8] != MAGIC {
        return Err("it has the wrong magic number".into());
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(format!(
            "a different version of wisp saved it (its format version is {version}, this wisp reads {VERSION})"
        ));
    }
    let length = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
    if length != payload.len() as u64 {
        return Err(format!("its payload is {} bytes long instead of {length}", payload.len()));
    }
    if header[20..] != Sha256::digest(payload)[..] {
        return Err("its SHA-256 does not match; the file was modified".into());
    }
    postcard::from_bytes(payload).map_err(|error| error.to_string())
}

pub fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux permits it in user mode.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: &[u8]) -> String {
        parse(content).unwrap_err()
    }

    #[test]
    fn damaged_or_foreign_state_is_refused_with_reason() {
        let whole = with_header(VERSION, b"a state");
        for length in 0..HEADER {
            assert_eq!(refused(&whole[..length]), format!("it is truncated to {length} bytes"));
        }
        assert_eq!(refused(&whole[..whole.len() - 1]), "its payload is 6 bytes long instead of 7");
        let mut altered = whole.clone();
        altered[HEADER] ^= 1;
        assert_eq!(refused(&altered), "its SHA-256 does not match; the file was modified");
        altered[0] ^= 1;
        assert_eq!(refused(&altered), "it has the wrong magic number");
        assert_eq!(
            refused(&with_header(VERSION - 1, b"")),
            "a different version of wisp saved it (its format version is 3, this wisp reads 4)"
        );
        assert!(!refused(&with_header(VERSION, b"")).is_empty(), "a state is never empty");
    }
}
