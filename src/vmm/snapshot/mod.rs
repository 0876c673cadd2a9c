//! A saved machine: its state in one file, its memory in another beside it, or in two.
//!
//! The state file is a magic number, the format's version, the length of what follows and its SHA-256, and then the state
//! itself, each device's its own typed part of it. What is of another version, cut short, altered, or of another
//! processor is refused before anything is made of it. A save that is not finished has no state file.

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

/// The state's file, in a snapshot's folder.
pub const STATE: &str = "state";
/// The memory's.
pub const MEMORY: &str = "memory";
/// The memory's of another saved machine, where the memory's own has only what differs.
pub const BASE: &str = "base";

const MAGIC: [u8; 8] = *b"wispsnap";
/// Changes whenever what is written does.
const VERSION: u32 = 3;
const HEADER: usize = 8 + 4 + 8 + 32;
/// More than any machine's state: 64 vCPUs have some 10 KiB each.
const LIMIT: u64 = 64 << 20;

/// A machine's state, but for its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Its vCPUs' CPUID, and the processor that it ran on.
    pub identity: CpuIdentity,
    /// That processor's time-stamp counter then.
    pub counter: u64,
    /// How many vCPUs it has, and how they belong together.
    pub cpus: CpuConfig,
    /// Its memory.
    pub memory_mib: u64,
    /// When the memory's file was written: seconds and nanoseconds since 1970. Its content has no checksum, because it is
    /// not read before the guest reads it. It is known when the state is written.
    pub memory_written: Option<(i64, i64)>,
    /// If that file has only what differs from another's: what that is.
    pub differences: Option<Differences>,
    /// The vCPUs, in order.
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
    /// The clock with a battery.
    pub rtc: RtcState,
    /// ACPI's registers.
    pub acpi_pm: AcpiPmState,
    /// Where the guest's random generator looks for its generation.
    pub generation: Option<u64>,
    /// The id of the disk in each slot.
    pub disks: Vec<Option<String>>,
    /// The virtio devices, in the order of their slots: disks, the entropy device, vsock.
    pub virtio: Vec<TransportState>,
}

/// Why a machine cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be read or written.
    #[error("{} cannot be {action}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was to be done with it, as a participle.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It is no snapshot, or a damaged one.
    #[error("{} is no snapshot that can be used: {reason}", path.display())]
    Unusable {
        /// The state's file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A device cannot have that state.
    #[error("the snapshot's state is not a device's: {0}")]
    Device(String),
    /// The machine that is to go on lacks a disk.
    #[error("the saved machine had a disk {0:?}, which this one lacks")]
    NoDisk(String),
    /// Or has one more.
    #[error("the saved machine had no disk {0:?}; it can be attached when the machine runs")]
    NewDisk(String),
    /// The machine that it is to become is another.
    #[error("the snapshot is of a machine with {saved}; this one has {wanted}")]
    OtherMachine {
        /// What was saved.
        saved: String,
        /// What is wanted.
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
    /// Writes the state into `folder`, where the memory is already; whole and durable, or not at all.
    pub fn write(mut self, folder: &Path) -> Result<(), SnapshotError> {
        self.memory_written = Some(file_written(&folder.join(MEMORY))?);
        let path = folder.join(STATE);
        let failed = SnapshotError::file(&path, "written");
        let payload = postcard::to_allocvec(&self).map_err(|error| failed(io::Error::other(error)))?;
        let mut content = Vec::with_capacity(HEADER + payload.len());
        content.extend(MAGIC);
        content.extend(VERSION.to_le_bytes());
        content.extend((payload.len() as u64).to_le_bytes());
        content.extend(Sha256::digest(&payload));
        content.extend(payload);
        let unfinished = folder.join(format!("{STATE}.new"));
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(failed)
    }

    /// Reads the state in `folder`, which must be one that can go on on this host.
    pub fn read(folder: &Path) -> Result<MachineState, SnapshotError> {
        let path = folder.join(STATE);
        let unusable = |reason: String| SnapshotError::Unusable { path: path.clone(), reason };
        let content = untrusted::read(&path, LIMIT).map_err(SnapshotError::file(&path, "read"))?;
        let state = parse(&content).map_err(unusable)?;
        if let Some(difference) = state.identity.processor.difference(&Processor::of_host(None)) {
            return Err(unusable(difference));
        }
        // Elsewhere KVM gives a guest a counter that goes on from where it was.
        if emulation::is_software_kvm() && counter() < state.counter {
            return Err(unusable(
                "the host was restarted since, and its KVM (software KVM) gives guests the host's own time-stamp counter, \
                 which would run backwards for this one"
                    .into(),
            ));
        }
        let base = state.differences.as_ref().map(|differences| (BASE, Some(differences.base_written)));
        for (name, written) in [(MEMORY, state.memory_written)].into_iter().chain(base) {
            if written != Some(file_written(&folder.join(name))?) {
                return Err(unusable(format!("the memory beside it, {name}, was written since")));
            }
        }
        Ok(state)
    }

    /// Refuses a state, read from `folder`, whose guest would miss something under this host's KVM: the microcode that it
    /// ran with, or a feature of its CPUID.
    pub fn check_host(&self, folder: &Path, kvm: &Kvm) -> Result<(), SnapshotError> {
        let unusable = |reason| SnapshotError::Unusable { path: folder.join(STATE), reason };
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

/// Whether the snapshot in `folder` can be restored on this host, as far as that can be told before it is tried.
pub fn check(folder: &Path) -> Result<(), SnapshotError> {
    let state = MachineState::read(folder)?;
    // A host without KVM says so when the machine is started.
    Kvm::new().map_or(Ok(()), |kvm| state.check_host(folder, &kvm))
}

fn file_written(path: &Path) -> Result<(i64, i64), SnapshotError> {
    path.symlink_metadata().map(|metadata| written(&metadata)).map_err(SnapshotError::file(path, "read"))
}

/// When a file was written, in seconds and nanoseconds since 1970.
fn written(metadata: &fs::Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// Has no other machine go on from a snapshot: durably, when this returns. Its memory stays as the base of one of the machine
/// that goes on from it now.
pub fn consume(folder: &Path) -> Result<(), SnapshotError> {
    let consume = || {
        fs::remove_file(folder.join(STATE))?;
        File::open(folder)?.sync_all()?;
        let (memory, base) = (folder.join(MEMORY), folder.join(BASE));
        if base.exists() { fs::remove_file(memory) } else { fs::rename(memory, base) }
    };
    consume().map_err(SnapshotError::file(folder, "changed"))
}

/// Moves a snapshot out of the directory in which a VMM has saved it, into a trusted one of the same file system. From then on the
/// VMM cannot exchange its files for links. The state comes last: it is what makes a snapshot.
pub fn take(from: &Path, to: &Path) -> io::Result<()> {
    use Presence::{Optional, Required};
    untrusted::take(from, to, &[(BASE, Optional), (MEMORY, Required), (STATE, Required)])
}

/// What a snapshot takes on disk, in bytes.
pub fn bytes(folder: &Path) -> u64 {
    let files = [STATE, MEMORY, BASE].map(|name| folder.join(name).symlink_metadata());
    files.iter().flatten().map(|metadata| metadata.blocks() * 512).sum()
}

/// Removes a snapshot, or what there is of one; first what makes it one.
pub fn remove(folder: &Path) -> io::Result<()> {
    if folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        untrusted::remove_in(folder, STATE)?;
    }
    untrusted::remove(folder)
}

/// What was to be removed need not have been there.
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

/// The processor's time-stamp counter.
pub fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and nothing takes it from user mode here.
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
