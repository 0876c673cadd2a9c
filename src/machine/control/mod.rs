//! The control protocol of a running machine: lines of JSON over the Unix socket `control.sock`.
//!
//! A client sends [`ControlRequest`]s and reads the responses, which are [`Message`]s, in the same order. Subscribers
//! also get event messages. The process that started a machine may be its *owner*: the machine ends when the owner
//! disconnects.

mod client;
mod server;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{BackingFile, DiskConfig};
use super::end::End;
use super::limits::{CpuBudgetRecord, DiskLimits, NetLimits};
use super::passed_files::PassedFile;
use super::sample_time::SampleTime;
use super::sandbox_record::SandboxRecord;
use super::timeline::{ExitRecord, TimelineRecord};

pub use client::{ClientError, ControlClient};
pub use server::{ControlServer, Incoming};

pub const SOCKET: &str = "control.sock";
/// Maximum length of a request in bytes. A client that sends a longer line is disconnected.
const LINE_LIMIT: usize = 64 << 10;

/// Maximum number of files per line. It is below the kernel's `SCM_MAX_FD`, and their paths fit into the line.
const FILES_AT_A_TIME: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Response: [`Message::Status`].
    Status,
    /// Request new memory statistics from the guest's balloon driver, for a later status. They cost the guest some
    /// thousand instructions. Response: [`Message::Done`], without waiting for the driver.
    RefreshGuestMemory,
    /// Send [`Message::Ready`] (at once if already ready) and [`Message::Ended`]. Response: [`Message::Done`].
    Subscribe,
    /// Press Ctrl+Alt+Del. Response: [`Message::Done`], or [`Message::Failed`] if the guest has no keyboard driver.
    CtrlAltDel,
    /// While this client is connected, end the machine when the guest reboots. Response: [`Message::Done`].
    EndAtReboot,
    /// Attach to the first free slot, which the guest must then bind its driver to. Response: [`Message::Attached`].
    AttachDisk {
        /// Its ID must not be in use.
        disk: DiskConfig,
    },
    /// Detach a disk. Response: [`Message::Done`], once everything is written to its file and the file is unlocked.
    DetachDisk {
        id: String,
        /// Detach even if the guest's driver is using the disk. The driver then gets errors.
        #[serde(default)]
        force: bool,
    },
    /// Response: [`Message::Attached`].
    DiskSlot { id: String },
    /// Grow a disk and notify the guest. Response: [`Message::Done`].
    ResizeDisk {
        id: String,
        /// In bytes, at least the current size.
        size: u64,
    },
    /// Response: [`Message::Done`].
    SetDiskLimits {
        id: String,
        /// None removes the disk's own limits.
        limits: Option<DiskLimits>,
    },
    /// Switch a disk to a new overlay. Response: [`Message::Done`], once the previous file is complete and durable.
    /// After [`Message::Failed`], the disk still uses its previous file.
    SwitchDisk {
        id: String,
        /// A qcow2 file whose backing file is the disk's current file.
        layer: PathBuf,
        /// Backing files of `layer`, topmost first. Passed only as open files: the VMM already knows their paths.
        #[serde(skip)]
        backing: Vec<BackingFile>,
    },
    /// Allow or forbid vCPUs to run on surplus credits. Response: [`Message::Done`].
    SetCanOwe { can_owe: bool },
    /// Reload the netstack's configuration. Response: [`Message::Reloaded`].
    ReloadLink {
        /// Passed with the request, because a new file may have replaced the one that the VMM can open.
        link: PathBuf,
    },
    /// Pass open files for the next request, in this order. There is no response.
    Files { files: Vec<PassedFile> },
    /// Save into an existing directory inside the VMM's own, then end. After [`Message::Failed`], the VM keeps running.
    Save { dir: PathBuf },
    /// Save the machine into an existing directory inside the VMM's own and keep it running. It pauses for
    /// milliseconds. Response: [`Message::Saved`], once everything is written.
    Fork {
        dir: PathBuf,
        /// New overlays, as in [`ControlRequest::SwitchDisk`], that the disks use from then on. Their backing files
        /// belong to the snapshot. After [`Message::Failed`], some of the overlays may be in use.
        layers: Vec<NewOverlay>,
    },
    /// Give the instance's identity to a guest that booted without it. Response: [`Message::Done`]. [`Message::Ready`]
    /// follows when the agent has applied the identity.
    Personalize,
    /// End the machine now. Subscribers get [`Message::Ended`]. A snapshot in progress fails, unless it completes
    /// first.
    Kill {
        /// A short description of the requester, for the machine's [`End`].
        by: String,
    },
}

impl ControlRequest {
    /// Returns the files to pass with the request. The client names them; a path in an image's header is never used.
    fn files(&self) -> Vec<PassedFile> {
        let file = |path: &Path, writable| PassedFile { path: path.to_path_buf(), writable };
        let layer = |path: &Path, backing: &[BackingFile]| {
            let backing = backing.iter().map(|backing| file(&backing.path, false));
            std::iter::once(file(path, true)).chain(backing).collect::<Vec<_>>()
        };
        let mut files: Vec<PassedFile> = match self {
            ControlRequest::AttachDisk { disk } => disk.files().map(|(path, writable)| file(path, writable)).collect(),
            ControlRequest::ReloadLink { link } => vec![file(link, false)],
            ControlRequest::SwitchDisk { layer: path, backing, .. } => layer(path, backing),
            ControlRequest::Fork { layers, .. } => {
                layers.iter().flat_map(|one| layer(&one.path, &one.backing)).collect()
            }
            _ => Vec::new(),
        };
        // Several disks may have the same backing file.
        files.sort_by(|one, other| (&one.path, one.writable).cmp(&(&other.path, other.writable)));
        files.dedup();
        files
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOverlay {
    /// The disk's ID.
    pub disk: String,
    /// A qcow2 file whose backing file is the disk's current file.
    pub path: PathBuf,
    /// Topmost first, as in [`ControlRequest::SwitchDisk`].
    #[serde(skip)]
    pub backing: Vec<BackingFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    Status(Box<VmmStatus>),
    Done,
    Failed {
        why: String,
    },
    Attached {
        /// The number of the disk's slot, counted from 0.
        slot: usize,
        /// Linux's name of the slot if it detects devices from its command line, for `bind` and `unbind` in
        /// `/sys/bus/platform/drivers/virtio-mmio`.
        bus_device: String,
        /// Linux's name of the slot if it detects devices through ACPI.
        acpi_device: String,
    },
    Reloaded {
        /// Errors of the parts that could not be applied.
        problems: Vec<String>,
    },
    Saved {
        paused_ns: u64,
    },
    Ready,
    /// The connection closes after this message.
    Ended {
        end: End,
        status: Box<VmmStatus>,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmStatus {
    /// Process ID of the VMM's supervisor. The VMM ends when its supervisor ends.
    pub pid: u32,
    #[serde(default)]
    pub moment: SampleTime,
    #[serde(default)]
    pub sandbox: SandboxRecord,
    /// The machine is ending, or is saving its memory in order to end.
    #[serde(default)]
    pub is_ending: bool,
    /// The machine ends when the command that started it exits.
    #[serde(default)]
    pub is_owned: bool,
    /// Name of the snapshot directory that the machine was restored from.
    #[serde(default)]
    pub restored_from: Option<String>,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The host has software KVM, which emulates guest kernels.
    pub software_kvm: bool,
    pub timeline: TimelineRecord,
    pub exits: Vec<ExitRecord>,
    /// CPU time of all vCPUs.
    #[serde(default)]
    pub cpu_time_ns: u64,
    #[serde(default)]
    pub cpu_budget: Option<CpuBudgetRecord>,
    /// The attached disks, in slot order.
    #[serde(default)]
    pub disks: Vec<DiskRecord>,
    #[serde(default)]
    pub net: Option<NetRecord>,
    #[serde(default)]
    pub net_limits: Option<NetLimits>,
    /// Aggregate limits of all disks.
    #[serde(default)]
    pub disk_limits: Option<DiskLimits>,
    /// Error messages of the netstack.
    #[serde(default)]
    pub link_problems: Vec<String>,
    pub guest_faults: Vec<GuestFaultRecord>,
    pub guest_resident_bytes: u64,
    /// Resident memory of the VMM, excluding guest memory.
    pub vmm_resident_bytes: u64,
    /// The last statistics of the guest's balloon driver ([`ControlRequest::RefreshGuestMemory`]).
    #[serde(default)]
    pub guest_memory: Option<GuestMemoryRecord>,
}

/// Memory in bytes as the guest's balloon driver reports it. A hostile guest may report anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryRecord {
    pub total_bytes: u64,
    /// Unused memory, without the page cache.
    pub free_bytes: u64,
    /// An estimate of the memory that programs can get without swapping.
    pub available_bytes: u64,
}

impl GuestMemoryRecord {
    /// Returns the memory that the guest cannot give to programs.
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.available_bytes)
    }
}

/// The number of errors of the guest's driver for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFaultRecord {
    pub device: String,
    pub count: u64,
}

/// The counters of a disk since it was attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    pub id: String,
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Requests that failed on the host. `reads` and `writes` do not include them.
    pub errors: u64,
    pub last_error: Option<String>,
    /// Time for which requests were throttled.
    #[serde(default)]
    pub throttled_ns: u64,
    #[serde(default)]
    pub limits: Option<DiskLimits>,
    /// The burst balance in percent.
    #[serde(default)]
    pub burst_percent: Option<u64>,
}

/// Sends a message without a server, for a machine that could not be built. Ignores errors: the client may be gone.
pub fn send_once(mut stream: &UnixStream, message: &Message) {
    let mut line = serde_json::to_vec(message).expect("a message serializes to JSON");
    line.push(b'\n');
    let _ = stream.write_all(&line);
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot create the control socket {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// Traffic counters of a network device since its VM was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetRecord {
    /// Delivered to the guest.
    pub received_frames: u64,
    pub received_bytes: u64,
    /// Includes frames that the netstack consumed.
    pub sent_frames: u64,
    pub sent_bytes: u64,
    /// Frames in either direction that were rejected or did not fit.
    pub dropped_frames: u64,
    /// Time for which frames in either direction were throttled.
    #[serde(default)]
    pub throttled_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_passes_its_named_files() {
        let backing = vec![BackingFile { path: "/volumes/base".into(), format: crate::config::DiskFormat::Raw }];
        let (id, layer) = ("disk".to_string(), PathBuf::from("/volumes/layer"));
        let request = ControlRequest::SwitchDisk { id, layer: layer.clone(), backing: backing.clone() };
        let file = |path: &str, writable| PassedFile { path: path.into(), writable };
        assert_eq!(request.files(), [file("/volumes/base", false), file("/volumes/layer", true)]);
        // Two overlays with the same backing file pass it once.
        let layers = ["/volumes/layer", "/volumes/other"].map(|path| NewOverlay {
            disk: path.into(),
            path: path.into(),
            backing: backing.clone(),
        });
        let request = ControlRequest::Fork { dir: "/i".into(), layers: layers.to_vec() };
        let files = [file("/volumes/base", false), file("/volumes/layer", true), file("/volumes/other", true)];
        assert_eq!(request.files(), files);
        // The request does not name backing files, because the VMM knows those of its disks.
        assert!(!serde_json::to_string(&request).unwrap().contains("base"));
    }

    #[test]
    fn requests_and_messages_are_lines_of_json() {
        let request = serde_json::to_string(&ControlRequest::Kill { by: "a test".into() }).unwrap();
        assert_eq!(request, r#"{"op":"kill","by":"a test"}"#);
        let message = Message::Ended { end: End::PowerOff, status: Box::default() };
        let line = serde_json::to_string(&message).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Message>(&line).unwrap(), message);
    }
}
