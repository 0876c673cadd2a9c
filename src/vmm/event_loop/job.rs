//! Requests that change the machine, depend on such changes, or may take long. Each runs in a thread of its own, one at
//! a time, so that the event loop keeps answering other clients.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use crate::sandbox::calls::ThreadKind;
use crate::sandbox::threads;
use machine::config::DiskConfig;
use machine::control::{ControlRequest, Message, NewOverlay, VmmStatus};
use machine::end::End;
use machine::limits::DiskLimits;
use machine::passed_files::FdTable;

/// The machine as the event loop sees it.
pub(crate) trait ControlledMachine: Send + Sync {
    /// Must not wait for a job.
    fn status(&self) -> VmmStatus;

    /// Returns true if the guest booted without its instance's identity, and was not given it yet.
    fn awaits_identity(&self) -> bool;

    /// Requests new memory statistics of the guest, for a later status.
    fn request_statistics(&self);

    /// Runs a job in the calling thread.
    fn perform(&self, job: Job) -> Outcome;

    /// Makes a job that copies the guest's memory fail soon, and all later jobs of this kind.
    fn cancel(&self);
}

#[derive(Debug)]
pub(crate) enum Job {
    CtrlAltDel,
    AttachDisk { disk: DiskConfig, files: FdTable },
    DetachDisk { id: String, force: bool },
    FindDisk { id: String },
    ResizeDisk { id: String, size: u64 },
    SetDiskLimits { id: String, limits: Option<DiskLimits> },
    SwitchDisk { id: String, layer: PathBuf, files: FdTable },
    SetCanOwe { can_owe: bool },
    ReloadLink { link: PathBuf, files: FdTable },
    Save { dir: PathBuf },
    Fork { dir: PathBuf, layers: Vec<NewOverlay>, files: FdTable },
    Personalize,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Message),
    /// The job has ended the machine.
    End(End),
}

/// A client's request.
#[derive(Debug)]
pub(super) enum Request {
    Immediate(ImmediateRequest),
    Job(Job),
}

/// A request that the event loop itself handles, also while a job is running.
#[derive(Debug)]
pub(super) enum ImmediateRequest {
    Status,
    RefreshGuestMemory,
    Subscribe,
    EndAtReboot,
    Kill { by: String },
}

impl Request {
    /// Returns `None` for a message that only passes files, which the control server keeps for the next request.
    pub fn of(request: ControlRequest, files: FdTable) -> Option<Request> {
        let now = |request| Some(Request::Immediate(request));
        Some(Request::Job(match request {
            ControlRequest::Status => return now(ImmediateRequest::Status),
            ControlRequest::RefreshGuestMemory => return now(ImmediateRequest::RefreshGuestMemory),
            ControlRequest::Subscribe => return now(ImmediateRequest::Subscribe),
            ControlRequest::EndAtReboot => return now(ImmediateRequest::EndAtReboot),
            ControlRequest::Kill { by } => return now(ImmediateRequest::Kill { by }),
            ControlRequest::Files { .. } => return None,
            ControlRequest::CtrlAltDel => Job::CtrlAltDel,
            ControlRequest::AttachDisk { disk } => Job::AttachDisk { disk, files },
            ControlRequest::DetachDisk { id, force } => Job::DetachDisk { id, force },
            ControlRequest::DiskSlot { id } => Job::FindDisk { id },
            ControlRequest::ResizeDisk { id, size } => Job::ResizeDisk { id, size },
            ControlRequest::SetDiskLimits { id, limits } => Job::SetDiskLimits { id, limits },
            ControlRequest::SwitchDisk { id, layer, .. } => Job::SwitchDisk { id, layer, files },
            ControlRequest::SetCanOwe { can_owe } => Job::SetCanOwe { can_owe },
            ControlRequest::ReloadLink { link } => Job::ReloadLink { link, files },
            ControlRequest::Save { dir } => Job::Save { dir },
            ControlRequest::Fork { dir, layers } => Job::Fork { dir, layers, files },
            ControlRequest::Personalize => Job::Personalize,
        }))
    }
}

impl Job {
    fn thread_name(&self) -> &'static str {
        match self {
            Job::CtrlAltDel => "ctrl-alt-del",
            Job::AttachDisk { .. } => "attach",
            Job::DetachDisk { .. } => "detach",
            Job::FindDisk { .. } => "find-disk",
            Job::ResizeDisk { .. } => "resize",
            Job::SetDiskLimits { .. } => "disk-limits",
            Job::SwitchDisk { .. } => "switch",
            Job::SetCanOwe { .. } => "can-owe",
            Job::ReloadLink { .. } => "reload",
            Job::Save { .. } => "save",
            Job::Fork { .. } => "fork",
            Job::Personalize => "personalize",
        }
    }
}

/// The thread of the running job, if any.
#[derive(Debug)]
pub(super) struct JobThread {
    completed: Arc<EventFd>,
    running: Option<RunningJob>,
}

#[derive(Debug)]
struct RunningJob {
    client: i32,
    /// The job saves the machine in order to end it.
    is_save: bool,
    thread: JoinHandle<Outcome>,
}

/// Notifies the event loop when a job's thread ends, even if the job panics.
struct Completion(Arc<EventFd>);

impl Drop for Completion {
    fn drop(&mut self) {
        // Cannot fail: the event loop reads the counter after each job.
        let _ = self.0.write(1);
    }
}

impl JobThread {
    pub fn new() -> io::Result<JobThread> {
        let completed = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(JobThread { completed: Arc::new(completed), running: None })
    }

    /// Becomes readable when the job has completed.
    pub fn completed(&self) -> &EventFd {
        &self.completed
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns true if a job is saving the machine in order to end it.
    pub fn is_saving(&self) -> bool {
        self.running.as_ref().is_some_and(|job| job.is_save)
    }

    /// Starts a job of `client`. The previous job must have been finished.
    pub fn start(&mut self, machine: &Arc<dyn ControlledMachine>, client: i32, job: Job) -> io::Result<()> {
        let (machine, completed) = (Arc::clone(machine), Arc::clone(&self.completed));
        let (name, is_save) = (job.thread_name().to_string(), matches!(job, Job::Save { .. }));
        let run = move || {
            let _completion = Completion(completed);
            machine.perform(job)
        };
        self.running = Some(RunningJob { client, is_save, thread: threads::spawn(name, ThreadKind::Job, run)? });
        Ok(())
    }

    /// Waits for the job, and returns its client and outcome. Once this returns, the thread no longer uses the machine.
    pub fn finish(&mut self) -> Option<(i32, Outcome)> {
        let RunningJob { client, thread, .. } = self.running.take()?;
        let panicked = |_| Outcome::Answer(Message::Failed { why: "the VMM's thread for the request panicked".into() });
        let outcome = thread.join().unwrap_or_else(panicked);
        let _ = self.completed.read();
        Some((client, outcome))
    }
}
