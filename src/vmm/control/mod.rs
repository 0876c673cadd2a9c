//! How other processes talk to a running machine: lines of JSON over a Unix socket, `control.sock` beside it.
//!
//! A client sends [`Request`]s and reads one [`Message`] for each, in order. After [`Request::Subscribe`], messages
//! about the machine's life come between them. The process that started a machine may be its *owner*: it has a
//! connection from the beginning, and when that closes, the machine ends.

mod client;
mod server;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{BackingFile, DiskConfig};
use super::end::End;
use super::limits::{CpuBudgetRecord, DiskLimits, NetLimits};
use super::passed::PassedPath;
use super::sandbox::SandboxRecord;
use super::timeline::{ExitRecord, TimelineRecord};
use super::usage::Moment;
use super::virtio::net::NetRecord;

pub use client::{ClientError, ControlClient};
pub(super) use server::ControlServer;

/// The name of the control socket in a machine's folder.
pub const SOCKET: &str = "control.sock";
/// The longest line, in bytes; a client that sends more is dropped.
const LINE_LIMIT: usize = 64 << 10;

/// Files that come with one line: fewer than the kernel passes at once (`SCM_MAX_FD`), and their paths fit into it.
const FILES_AT_A_TIME: usize = 100;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// How the machine is; answered with [`Message::Status`].
    Status,
    /// Be told when the agent is ready (at once if it is) and when the machine ends; answered with [`Message::Done`].
    Subscribe,
    /// Press ctrl-alt-del; answered with [`Message::Done`], or [`Message::Failed`] if the guest has no keyboard driver.
    CtrlAltDel,
    /// The machine is being stopped: if its guest reboots while this client is there, that is its end; answered with
    /// [`Message::Done`].
    EndAtReboot,
    /// Put a disk into the first free slot; answered with [`Message::Attached`]. The guest looks at the slot when it is told
    /// to bind its driver to it.
    AttachDisk {
        /// The disk; its id is new to the machine.
        disk: DiskConfig,
    },
    /// Take a disk out; answered with [`Message::Done`] when everything is written to its file, which is free then.
    DetachDisk {
        /// Which.
        id: String,
        /// Even if the guest's driver is still there: it gets errors for what it asks of the disk from now on.
        #[serde(default)]
        force: bool,
    },
    /// Where a disk is; answered with [`Message::Attached`].
    DiskSlot {
        /// Which.
        id: String,
    },
    /// Give a disk more bytes, and tell the guest; answered with [`Message::Done`].
    ResizeDisk {
        /// Which.
        id: String,
        /// How many bytes it is to have, no fewer than it has.
        size: u64,
    },
    /// Have a disk go by other limits from now on; answered with [`Message::Done`].
    SetDiskLimits {
        /// Which.
        id: String,
        /// The limits; without, it has none of its own.
        limits: Option<DiskLimits>,
    },
    /// Have a disk written to a new layer from now on. Answered with [`Message::Done`] when the file that it was written
    /// to is complete and durable, and will not change again. After [`Message::Failed`] the disk goes on as it was.
    SwitchDisk {
        /// Which.
        id: String,
        /// A qcow2 file whose backing file is the one that the disk is written to now.
        layer: PathBuf,
        /// Backing files of the layer, the topmost first. They are passed open with the request, which does not name them:
        /// the machine knows the files that its disk has.
        #[serde(skip)]
        backing: Vec<BackingFile>,
    },
    /// Whether vCPUs may have more CPU time than is earned and saved, from now on; answered with [`Message::Done`].
    SetCanOwe {
        /// Whether they may.
        can_owe: bool,
    },
    /// Go by the link's new configuration; answered with [`Message::Reloaded`].
    ReloadLink {
        /// The configuration's file, which is passed with the request: a new one may have taken the place of the one that
        /// the process can open.
        link: PathBuf,
    },
    /// The files that the next request is about come with this line, open, in this order; not answered.
    Files {
        /// What they stand for.
        files: Vec<PassedPath>,
    },
    /// Save the machine into a folder of the VMM's own directory, with which it ends: answered with [`Message::Ended`] where the client subscribed.
    /// After [`Message::Failed`] it goes on.
    Save {
        /// The folder, which is there.
        folder: PathBuf,
    },
    /// Save the machine into a folder of the VMM's own directory while it runs: it pauses for milliseconds. Answered with [`Message::Saved`] when all
    /// is written.
    Fork {
        /// The folder, which is there.
        folder: PathBuf,
        /// New layers that disks are written to from that moment on, as with [`Request::SwitchDisk`]: what was there then is
        /// beneath them. After [`Message::Failed`] some may be in use, and some not.
        layers: Vec<Layer>,
    },
    /// End the machine now; answered with [`Message::Ended`] where the client subscribed.
    Kill {
        /// Who wants it, in a few words: it becomes part of the machine's end.
        by: String,
    },
}

impl Request {
    /// The files that have to be passed with the request: those that the command names, never those that a header does.
    fn files(&self) -> Vec<PassedPath> {
        let file = |path: &Path, writable| PassedPath { path: path.to_path_buf(), writable };
        let layer = |path: &Path, backing: &[BackingFile]| {
            let backing = backing.iter().map(|backing| file(&backing.path, false));
            std::iter::once(file(path, true)).chain(backing).collect::<Vec<_>>()
        };
        let mut files: Vec<PassedPath> = match self {
            Request::AttachDisk { disk } => disk.files().map(|(path, writable)| file(path, writable)).collect(),
            Request::ReloadLink { link } => vec![file(link, false)],
            Request::SwitchDisk { layer: path, backing, .. } => layer(path, backing),
            Request::Fork { layers, .. } => layers.iter().flat_map(|one| layer(&one.path, &one.backing)).collect(),
            _ => Vec::new(),
        };
        // Several disks may have the file of one image as their backing file.
        files.sort_by(|one, other| (&one.path, one.writable).cmp(&(&other.path, other.writable)));
        files.dedup();
        files
    }
}

/// A disk's new layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which disk's.
    pub disk: String,
    /// A qcow2 file whose backing file is the one that the disk is written to now.
    pub path: PathBuf,
    /// Backing files of the layer, the topmost first, as in [`Request::SwitchDisk`].
    #[serde(skip)]
    pub backing: Vec<BackingFile>,
}

/// What a machine says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// The machine's status.
    Status(Box<Status>),
    /// A request was carried out.
    Done,
    /// A request could not be carried out.
    Failed {
        /// Why, in a sentence.
        why: String,
    },
    /// A disk is in a slot.
    Attached {
        /// The slot, counted from 0.
        slot: usize,
        /// What Linux calls the slot where it learns of it from its command line: what is written to `bind` or `unbind`
        /// in `/sys/bus/platform/drivers/virtio-mmio`.
        bus_device: String,
        /// The same, where it learns of it from ACPI.
        acpi_device: String,
    },
    /// The link goes by its new configuration.
    Reloaded {
        /// What of it could not be done, in sentences.
        problems: Vec<String>,
    },
    /// The machine was saved, and runs on.
    Saved {
        /// For how long it was paused, in nanoseconds.
        paused_ns: u64,
    },
    /// The guest's agent answers.
    Ready,
    /// The machine has come to its end; the connection closes after this.
    Ended {
        /// How.
        end: End,
        /// The last status.
        status: Box<Status>,
    },
}

/// A machine in figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The monitor's process id: of its keeper, which ends the other when it ends.
    pub pid: u32,
    /// When it was so.
    #[serde(default)]
    pub moment: Moment,
    /// What the process that runs the machine has given up.
    #[serde(default)]
    pub sandbox: SandboxRecord,
    /// vCPUs.
    pub vcpus: u32,
    /// Guest memory, in MiB.
    pub memory_mib: u64,
    /// Whether guest kernels are emulated on this host.
    pub software_kvm: bool,
    /// The boot's marks.
    pub timeline: TimelineRecord,
    /// Exits by reason.
    pub exits: Vec<ExitRecord>,
    /// What all vCPUs together had of the host's CPUs, in nanoseconds.
    #[serde(default)]
    pub cpu_time_ns: u64,
    /// What is left for them, if that is limited.
    #[serde(default)]
    pub cpu_budget: Option<CpuBudgetRecord>,
    /// What was done to the disks that the machine has now, in the order of their slots.
    #[serde(default)]
    pub disks: Vec<DiskRecord>,
    /// What has gone through the network device, if there is one.
    #[serde(default)]
    pub net: Option<NetRecord>,
    /// What may pass through it, if that is limited.
    #[serde(default)]
    pub net_limits: Option<NetLimits>,
    /// What all disks together may do, if that is limited.
    #[serde(default)]
    pub disk_limits: Option<DiskLimits>,
    /// What is wrong with its link, in sentences.
    #[serde(default)]
    pub link_problems: Vec<String>,
    /// What the guest's drivers did wrong, by device.
    pub guest_faults: Vec<GuestFaultRecord>,
    /// Bytes of guest memory that the host holds in RAM.
    pub guest_resident_bytes: u64,
    /// Bytes that the monitor holds in RAM besides.
    pub monitor_resident_bytes: u64,
}

/// A device's faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFaultRecord {
    /// The device.
    pub device: String,
    /// How many.
    pub count: u64,
}

/// What was done to a disk since it was put into the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk's name.
    pub id: String,
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that failed on the host.
    pub errors: u64,
    /// The last of them, in a sentence.
    pub last_error: Option<String>,
    /// For how long requests were held back, in nanoseconds.
    #[serde(default)]
    pub held_ns: u64,
    /// What it may do, if that is limited.
    #[serde(default)]
    pub limits: Option<DiskLimits>,
    /// What is left of what it can save for times above its baseline, in per cent.
    #[serde(default)]
    pub saved_percent: Option<u64>,
}

/// Sends one message to a connection that has no server yet, where a machine could not even be built. It is a
/// courtesy: if the other end is gone, nobody is told.
pub fn send_once(mut stream: &UnixStream, message: &Message) {
    let mut line = serde_json::to_vec(message).expect("messages are plain data");
    line.push(b'\n');
    let _ = stream.write_all(&line);
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket could not be made.
    #[error("the control socket {} cannot be made: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
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
        let file = |path: &str, writable| PassedPath { path: path.into(), writable };
        assert_eq!(request.files(), [file("/volumes/base", false), file("/volumes/layer", true)]);
        // Several disks with one backing file pass it once.
        let layers = ["/volumes/layer", "/volumes/other"].map(|path| Layer {
            disk: path.into(),
            path: path.into(),
            backing: backing.clone(),
        });
        let request = Request::Fork { folder: "/i".into(), layers: layers.to_vec() };
        let files = [file("/volumes/base", false), file("/volumes/layer", true), file("/volumes/other", true)];
        assert_eq!(request.files(), files);
        // The request does not name them: the machine knows its own.
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
