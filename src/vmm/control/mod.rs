//! The control protocol of a running machine: lines of JSON over a Unix socket, `control.sock` in its directory.
//!
//! A client sends [`Request`]s and reads one [`Message`] for each, in order. After [`Request::Subscribe`], event
//! messages come between them. The process that started a machine may be its *owner*: it is connected from the start,
//! and when it closes the connection, the machine ends.

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
use super::sandbox::SandboxRecord;
use super::timeline::{ExitRecord, TimelineRecord};
use super::usage::Moment;
use super::virtio::net::NetRecord;

pub use client::{ClientError, ControlClient};
pub(super) use server::ControlServer;

/// The name of the control socket in a machine's directory.
pub const SOCKET: &str = "control.sock";
/// The maximum length of a line in bytes. A client that sends more is disconnected.
const LINE_LIMIT: usize = 64 << 10;

/// The number of files that come with one line. It is below the kernel's limit (`SCM_MAX_FD`), and their paths fit
/// into the line.
const FILES_AT_A_TIME: usize = 100;

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Return the machine's status. Response: [`Message::Status`].
    Status,
    /// Send a message when the agent is ready (at once if it already is) and when the machine ends. Response:
    /// [`Message::Done`].
    Subscribe,
    /// Press ctrl-alt-del. Response: [`Message::Done`], or [`Message::Failed`] if the guest has no keyboard driver.
    CtrlAltDel,
    /// End the machine if its guest reboots while this client is connected. Sent while the machine is being stopped.
    /// Response: [`Message::Done`].
    EndAtReboot,
    /// Attach a disk to the first free slot. The guest detects it when its driver is bound to the slot again.
    /// Response: [`Message::Attached`].
    AttachDisk {
        /// The disk, whose id must not be in use.
        disk: DiskConfig,
    },
    /// Detach a disk. Response: [`Message::Done`], once everything is written to the file and the file is unlocked.
    DetachDisk {
        /// The disk's id.
        id: String,
        /// Detach the disk even if the guest's driver uses it. The driver then gets errors.
        #[serde(default)]
        force: bool,
    },
    /// Return the slot of a disk. Response: [`Message::Attached`].
    DiskSlot {
        /// The disk's id.
        id: String,
    },
    /// Grow a disk and notify the guest. Response: [`Message::Done`].
    ResizeDisk {
        /// The disk's id.
        id: String,
        /// The new size in bytes, at least the current size.
        size: u64,
    },
    /// Set the limits of a disk. Response: [`Message::Done`].
    SetDiskLimits {
        /// The disk's id.
        id: String,
        /// The limits; none removes the disk's own limits.
        limits: Option<DiskLimits>,
    },
    /// Switch a disk to a new overlay. Response: [`Message::Done`], once the previous file is complete, durable and
    /// will not change again. After [`Message::Failed`], the disk still uses its previous file.
    SwitchDisk {
        /// The disk's id.
        id: String,
        /// A qcow2 file whose backing file is the disk's current file.
        layer: PathBuf,
        /// The overlay's backing files, topmost first. They are passed open with the request, which does not name
        /// them, because the machine knows the files of its disks.
        #[serde(skip)]
        backing: Vec<BackingFile>,
    },
    /// Allow or forbid vCPUs to run on surplus credits. Response: [`Message::Done`].
    SetCanOwe {
        /// True allows it.
        can_owe: bool,
    },
    /// Reload the netstack's configuration. Response: [`Message::Reloaded`].
    ReloadLink {
        /// The configuration's file, which is passed with the request. A new file may have replaced the one that the
        /// VMM can open.
        link: PathBuf,
    },
    /// Pass open files for the next request, in this order. There is no response.
    Files {
        /// The paths and modes of the files.
        files: Vec<PassedFile>,
    },
    /// Save the machine into a directory inside the VMM's own, and end it. Subscribers get [`Message::Ended`]. After
    /// [`Message::Failed`], the machine still runs.
    Save {
        /// The directory, which must exist.
        dir: PathBuf,
    },
    /// Save the machine into a directory inside the VMM's own while it runs. It pauses for milliseconds. Response:
    /// [`Message::Saved`], once everything is written.
    Fork {
        /// The directory, which must exist.
        dir: PathBuf,
        /// New overlays that disks write to from that instant on, as with [`Request::SwitchDisk`]. The files of the
        /// snapshot are their backing files. After [`Message::Failed`], some of them may be in use.
        layers: Vec<Layer>,
    },
    /// End the machine now. Subscribers get [`Message::Ended`].
    Kill {
        /// The requester in a few words, for the machine's [`End`].
        by: String,
    },
}

impl Request {
    /// Returns the files to pass with the request. The command names them; a path in an image's header is never used.
    fn files(&self) -> Vec<PassedFile> {
        let file = |path: &Path, writable| PassedFile { path: path.to_path_buf(), writable };
        let layer = |path: &Path, backing: &[BackingFile]| {
            let backing = backing.iter().map(|backing| file(&backing.path, false));
            std::iter::once(file(path, true)).chain(backing).collect::<Vec<_>>()
        };
        let mut files: Vec<PassedFile> = match self {
            Request::AttachDisk { disk } => disk.files().map(|(path, writable)| file(path, writable)).collect(),
            Request::ReloadLink { link } => vec![file(link, false)],
            Request::SwitchDisk { layer: path, backing, .. } => layer(path, backing),
            Request::Fork { layers, .. } => layers.iter().flat_map(|one| layer(&one.path, &one.backing)).collect(),
            _ => Vec::new(),
        };
        // Several disks may have the same backing file.
        files.sort_by(|one, other| (&one.path, one.writable).cmp(&(&other.path, other.writable)));
        files.dedup();
        files
    }
}

/// A disk's new overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The disk's id.
    pub disk: String,
    /// A qcow2 file whose backing file is the disk's current file.
    pub path: PathBuf,
    /// The overlay's backing files, topmost first, as in [`Request::SwitchDisk`].
    #[serde(skip)]
    pub backing: Vec<BackingFile>,
}

/// A message from a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// The machine's status.
    Status(Box<Status>),
    /// The request succeeded.
    Done,
    /// The request failed.
    Failed {
        /// The error message.
        why: String,
    },
    /// The slot of a disk.
    Attached {
        /// The slot, counted from 0.
        slot: usize,
        /// Linux's name of the slot if it detects devices from its command line. It is written to `bind` or `unbind`
        /// in `/sys/bus/platform/drivers/virtio-mmio`.
        bus_device: String,
        /// Linux's name of the slot if it detects devices through ACPI.
        acpi_device: String,
    },
    /// The netstack uses its new configuration.
    Reloaded {
        /// Error messages about the parts that could not be applied.
        problems: Vec<String>,
    },
    /// The machine was saved and runs again.
    Saved {
        /// The duration of the pause in nanoseconds.
        paused_ns: u64,
    },
    /// The guest's agent is ready.
    Ready,
    /// The machine has ended. The connection closes after this message.
    Ended {
        /// The reason of the end.
        end: End,
        /// The last status.
        status: Box<Status>,
    },
}

/// The status of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process id of the VMM's supervisor. The VMM ends with it.
    pub pid: u32,
    /// The time of the status.
    #[serde(default)]
    pub moment: Moment,
    /// The VMM's sandbox.
    #[serde(default)]
    pub sandbox: SandboxRecord,
    /// The number of vCPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The host has software KVM, which emulates guest kernels.
    pub software_kvm: bool,
    /// The boot timeline.
    pub timeline: TimelineRecord,
    /// Exits by reason.
    pub exits: Vec<ExitRecord>,
    /// CPU time of all vCPUs in nanoseconds.
    #[serde(default)]
    pub cpu_time_ns: u64,
    /// The CPU budget, if limited.
    #[serde(default)]
    pub cpu_budget: Option<CpuBudgetRecord>,
    /// Counters of the attached disks, in slot order.
    #[serde(default)]
    pub disks: Vec<DiskRecord>,
    /// Counters of the network device, if there is one.
    #[serde(default)]
    pub net: Option<NetRecord>,
    /// Limits of the network device, if any.
    #[serde(default)]
    pub net_limits: Option<NetLimits>,
    /// Aggregate limits of all disks, if any.
    #[serde(default)]
    pub disk_limits: Option<DiskLimits>,
    /// Error messages of the netstack.
    #[serde(default)]
    pub link_problems: Vec<String>,
    /// Errors of the guest's drivers, by device.
    pub guest_faults: Vec<GuestFaultRecord>,
    /// Resident guest memory in bytes.
    pub guest_resident_bytes: u64,
    /// Other resident memory of the VMM process, in bytes.
    pub monitor_resident_bytes: u64,
}

/// The errors of a guest's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFaultRecord {
    /// The device.
    pub device: String,
    /// The number of errors.
    pub count: u64,
}

/// The counters of a disk since it was attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk's id.
    pub id: String,
    /// Successful reads.
    pub reads: u64,
    /// Successful writes.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that failed on the host.
    pub errors: u64,
    /// The last error message.
    pub last_error: Option<String>,
    /// Throttled time in nanoseconds.
    #[serde(default)]
    pub held_ns: u64,
    /// The disk's limits, if any.
    #[serde(default)]
    pub limits: Option<DiskLimits>,
    /// The burst balance in percent.
    #[serde(default)]
    pub saved_percent: Option<u64>,
}

/// Sends one message to a connection without a server, when a machine could not be built. Errors are ignored, because
/// the client may be gone.
pub fn send_once(mut stream: &UnixStream, message: &Message) {
    let mut line = serde_json::to_vec(message).expect("messages are plain data");
    line.push(b'\n');
    let _ = stream.write_all(&line);
}

/// The reason why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be created.
    #[error("the control socket {} cannot be made: {source}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_passed_are_those_that_the_request_names() {
        let backing = vec![BackingFile { path: "/volumes/base".into(), format: crate::vmm::config::DiskFormat::Raw }];
        let (id, layer) = ("disk".to_string(), PathBuf::from("/volumes/layer"));
        let request = Request::SwitchDisk { id, layer: layer.clone(), backing: backing.clone() };
        let file = |path: &str, writable| PassedFile { path: path.into(), writable };
        assert_eq!(request.files(), [file("/volumes/base", false), file("/volumes/layer", true)]);
        // Two overlays with the same backing file pass it once.
        let layers = ["/volumes/layer", "/volumes/other"].map(|path| Layer {
            disk: path.into(),
            path: path.into(),
            backing: backing.clone(),
        });
        let request = Request::Fork { dir: "/i".into(), layers: layers.to_vec() };
        let files = [file("/volumes/base", false), file("/volumes/layer", true), file("/volumes/other", true)];
        assert_eq!(request.files(), files);
        // The request does not name backing files: the machine knows its own.
        assert!(!serde_json::to_string(&request).unwrap().contains("base"));
    }

    #[test]
    fn requests_and_messages_are_lines_of_json() {
        let request = serde_json::to_string(&Request::Kill { by: "a test".into() }).unwrap();
        assert_eq!(request, r#"{"op":"kill","by":"a test"}"#);
        let message = Message::Ended { end: End::PowerOff, status: Box::default() };
        let line = serde_json::to_string(&message).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Message>(&line).unwrap(), message);
    }
}
