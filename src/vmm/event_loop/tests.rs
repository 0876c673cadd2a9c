//! The event loop with a fake machine, whose jobs last until the test completes them.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::*;
use crate::devices::console::Console;
use crate::devices::serial::SerialState;
use crate::irq::IrqLine;
use machine::control::{ClientError, ControlClient, ControlRequest, SOCKET, VmmStatus};
use machine::end::{EndSender, end_channel};
use machine::files::CONSOLE_SOCKET;
use machine::timeline::Timeline;

struct FakeMachine {
    started: Mutex<Sender<Job>>,
    outcomes: Mutex<Receiver<Outcome>>,
    on_cancel: Mutex<Sender<Outcome>>,
    /// The outcome of a job that is canceled.
    canceled: fn() -> Outcome,
    awaits_identity: Arc<AtomicBool>,
}

impl ControlledMachine for FakeMachine {
    fn status(&self) -> VmmStatus {
        VmmStatus { vcpus: 7, ..VmmStatus::default() }
    }

    fn awaits_identity(&self) -> bool {
        self.awaits_identity.load(Ordering::SeqCst)
    }

    fn request_statistics(&self) {}

    fn perform(&self, job: Job) -> Outcome {
        self.started.lock().unwrap().send(job).unwrap();
        self.outcomes.lock().unwrap().recv().unwrap()
    }

    fn cancel(&self) {
        self.on_cancel.lock().unwrap().send((self.canceled)()).unwrap();
    }
}

fn failed(why: &str) -> Outcome {
    Outcome::Answer(Message::Failed { why: why.into() })
}

struct Bench {
    dir: tempfile::TempDir,
    started: Receiver<Job>,
    outcomes: Sender<Outcome>,
    ends: EndSender,
    ready: EventFd,
    awaits_identity: Arc<AtomicBool>,
    event_loop: JoinHandle<(End, ControlServer)>,
}

fn bench(launcher: Launcher) -> Bench {
    bench_with(launcher, || failed("canceled"))
}

fn bench_with(launcher: Launcher, canceled: fn() -> Outcome) -> Bench {
    bench_of(launcher, canceled, false)
}

/// A machine whose guest boots without its instance's identity.
fn template_bench(launcher: Launcher) -> Bench {
    bench_of(launcher, || failed("canceled"), true)
}

fn bench_of(launcher: Launcher, canceled: fn() -> Outcome, is_template: bool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let console = Console::new(None, Arc::new(Timeline::default())).unwrap();
    let new_event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let serial = Serial::new(&SerialState::default(), IrqLine::new().unwrap(), console.writer(), new_event()).unwrap();
    let (end_sender, ends) = end_channel().unwrap();
    let ready = new_event();
    let control = ControlServer::bind(&dir.path().join(SOCKET)).unwrap();
    let socket = ConsoleSocket::bind(&dir.path().join(CONSOLE_SOCKET), console).unwrap();
    let terminal = Terminal { socket, serial: Arc::new(Mutex::new(serial)), serial_room: new_event() };
    let is_ready = ready.try_clone().unwrap();
    let (start, started) = channel();
    let (finish, outcomes) = channel();
    let awaits_identity = Arc::new(AtomicBool::new(is_template));
    let machine: Arc<dyn ControlledMachine> = Arc::new(FakeMachine {
        started: Mutex::new(start),
        outcomes: Mutex::new(outcomes),
        on_cancel: Mutex::new(finish.clone()),
        canceled,
        awaits_identity: Arc::clone(&awaits_identity),
    });
    let event_loop = std::thread::spawn(move || {
        let (ready, recorder, owner_until_ready) = (is_ready, None, is_template);
        let sources = EventSources { control, launcher, terminal, ends, ready, recorder, owner_until_ready };
        EventLoop::new(sources).unwrap().run(&machine)
    });
    Bench { dir, started, outcomes: finish, ends: end_sender, ready, awaits_identity, event_loop }
}

impl Bench {
    fn connect(&self) -> ControlClient {
        ControlClient::connect(&self.dir.path().join(SOCKET)).unwrap()
    }

    /// Starts a job of a new client, which runs when this returns.
    fn connect_with_job(&self) -> ControlClient {
        let mut client = self.connect();
        client.send(&save()).unwrap();
        assert!(matches!(self.started.recv().unwrap(), Job::Save { .. }));
        client
    }

    fn complete(&self) {
        self.outcomes.send(Outcome::Answer(Message::Done)).unwrap();
    }

    fn end(self) -> End {
        self.event_loop.join().unwrap().0
    }
}

fn save() -> ControlRequest {
    ControlRequest::Save { dir: "saved".into() }
}

fn kill() -> ControlRequest {
    ControlRequest::Kill { by: "a test".into() }
}

fn receive(client: &mut ControlClient) -> Message {
    client.receive(None).unwrap()
}

/// Sends a request and returns its answer.
fn ask(client: &mut ControlClient, request: &ControlRequest) -> Message {
    client.send(request).unwrap();
    receive(client)
}

fn is_status(message: &Message) -> bool {
    matches!(message, Message::Status(status) if status.vcpus == 7)
}

#[test]
fn status_tells_that_machine_is_saved_to_end() {
    let bench = bench(Launcher::Detached);
    let mut other = bench.connect();
    let mut is_ending = || match ask(&mut other, &ControlRequest::Status) {
        Message::Status(status) => status.is_ending,
        message => panic!("{message:?}"),
    };
    assert!(!is_ending());
    let mut client = bench.connect_with_job();
    assert!(is_ending());
    // The save fails, so the machine keeps running.
    bench.outcomes.send(failed("no space")).unwrap();
    assert!(matches!(receive(&mut client), Message::Failed { .. }));
    assert!(!is_ending());
    client.send(&kill()).unwrap();
    bench.end();
}

#[test]
fn status_is_answered_during_job() {
    let bench = bench(Launcher::Detached);
    let mut saving = bench.connect_with_job();
    let mut other = bench.connect();
    assert!(is_status(&ask(&mut other, &ControlRequest::Status)));
    bench.complete();
    assert_eq!(receive(&mut saving), Message::Done);
    other.send(&kill()).unwrap();
    assert_eq!(bench.end(), End::Killed { by: "a test".into() });
}

#[test]
fn later_requests_of_client_wait_for_its_job() {
    let bench = bench(Launcher::Detached);
    let mut client = bench.connect_with_job();
    client.send(&ControlRequest::Status).unwrap();
    client.send(&ControlRequest::DetachDisk { id: "disk".into(), force: false }).unwrap();
    client.send(&ControlRequest::Status).unwrap();
    // An answer to another client shows that the loop has had the time to answer this one.
    assert!(is_status(&ask(&mut bench.connect(), &ControlRequest::Status)));
    bench.complete();
    assert_eq!(receive(&mut client), Message::Done);
    assert!(is_status(&receive(&mut client)));
    assert!(matches!(bench.started.recv().unwrap(), Job::DetachDisk { .. }));
    bench.outcomes.send(failed("no such disk")).unwrap();
    assert_eq!(receive(&mut client), Message::Failed { why: "no such disk".into() });
    assert!(is_status(&receive(&mut client)));
    client.send(&kill()).unwrap();
    bench.end();
}

#[test]
fn second_job_waits_for_first() {
    let bench = bench(Launcher::Detached);
    let mut first = bench.connect_with_job();
    let mut second = bench.connect();
    second.send(&ControlRequest::CtrlAltDel).unwrap();
    assert!(is_status(&ask(&mut bench.connect(), &ControlRequest::Status)));
    assert!(bench.started.try_recv().is_err());
    bench.complete();
    assert_eq!(receive(&mut first), Message::Done);
    assert!(matches!(bench.started.recv().unwrap(), Job::CtrlAltDel));
    bench.complete();
    assert_eq!(receive(&mut second), Message::Done);
    first.send(&kill()).unwrap();
    bench.end();
}

#[test]
fn kill_cancels_job_and_answers_its_client() {
    let bench = bench(Launcher::Detached);
    let mut saving = bench.connect_with_job();
    bench.connect().send(&kill()).unwrap();
    assert_eq!(receive(&mut saving), Message::Failed { why: "canceled".into() });
    assert_eq!(bench.end(), End::Killed { by: "a test".into() });
}

#[test]
fn exit_of_owner_cancels_job_of_other_client() {
    let (owner, stream) = UnixStream::pair().unwrap();
    let bench = bench(Launcher::Owner(stream));
    let mut saving = bench.connect_with_job();
    drop(owner);
    assert_eq!(receive(&mut saving), Message::Failed { why: "canceled".into() });
    assert_eq!(bench.end(), End::Killed { by: "the exit of the command that started it".into() });
}

#[test]
fn exit_of_owner_cancels_its_own_job() {
    let (owner, stream) = UnixStream::pair().unwrap();
    let bench = bench(Launcher::Owner(stream));
    let mut owner = ControlClient::new(owner).unwrap();
    owner.send(&save()).unwrap();
    bench.started.recv().unwrap();
    drop(owner);
    assert_eq!(bench.end(), End::Killed { by: "the exit of the command that started it".into() });
}

#[test]
fn power_off_waits_for_job_and_status_is_answered_meanwhile() {
    let bench = bench(Launcher::Detached);
    let mut saving = bench.connect_with_job();
    bench.ends.send(End::PowerOff);
    let mut other = bench.connect();
    assert!(is_status(&ask(&mut other, &ControlRequest::Status)));
    // No job starts any more.
    other.send(&ControlRequest::CtrlAltDel).unwrap();
    bench.complete();
    assert_eq!(receive(&mut saving), Message::Done);
    assert!(bench.started.recv().is_err());
    assert_eq!(bench.end(), End::PowerOff);
    assert!(matches!(other.receive(None), Err(ClientError::Gone)));
}

#[test]
fn kill_of_machine_that_completes_its_snapshot_ends_as_saved() {
    let bench = bench_with(Launcher::Detached, || Outcome::End(End::Saved));
    let _saving = bench.connect_with_job();
    bench.connect().send(&kill()).unwrap();
    assert_eq!(bench.end(), End::Saved);
}

#[test]
fn answer_for_closed_client_reaches_no_other() {
    let bench = bench(Launcher::Detached);
    drop(bench.connect_with_job());
    let mut others: Vec<ControlClient> = (0..8).map(|_| bench.connect()).collect();
    others.iter_mut().for_each(|other| assert!(is_status(&ask(other, &ControlRequest::Status))));
    bench.complete();
    // The next job starts after the answer to the first.
    let mut last = bench.connect_with_job();
    bench.complete();
    assert_eq!(receive(&mut last), Message::Done);
    others.iter_mut().for_each(|other| assert!(is_status(&ask(other, &ControlRequest::Status))));
    last.send(&kill()).unwrap();
    bench.end();
}

#[test]
fn client_that_half_closes_gets_answer_of_its_job() {
    let bench = bench(Launcher::Detached);
    let stream = UnixStream::connect(bench.dir.path().join(SOCKET)).unwrap();
    let mut client = ControlClient::new(stream.try_clone().unwrap()).unwrap();
    client.send(&save()).unwrap();
    bench.started.recv().unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    bench.complete();
    assert_eq!(receive(&mut client), Message::Done);
    assert!(matches!(client.receive(None), Err(ClientError::Gone)));
    bench.connect().send(&kill()).unwrap();
    bench.end();
}

#[test]
fn reboot_ends_machine_while_one_requester_is_connected() {
    let bench = bench(Launcher::Detached);
    let (mut first, mut second) = (bench.connect(), bench.connect());
    for client in [&mut first, &mut second] {
        assert_eq!(ask(client, &ControlRequest::EndAtReboot), Message::Done);
    }
    drop(second);
    // The loop handles the close before it answers a later connection.
    assert!(is_status(&ask(&mut bench.connect(), &ControlRequest::Status)));
    bench.ends.send(End::Reboot);
    assert_eq!(bench.end(), End::Killed { by: "a stop request, when the guest rebooted".into() });
}

#[test]
fn kill_during_job_after_reboot_ends_as_killed() {
    let bench = bench(Launcher::Detached);
    let mut saving = bench.connect_with_job();
    bench.ends.send(End::Reboot);
    // The loop takes the end before it answers a later connection.
    assert!(is_status(&ask(&mut bench.connect(), &ControlRequest::Status)));
    bench.connect().send(&kill()).unwrap();
    assert_eq!(receive(&mut saving), Message::Failed { why: "canceled".into() });
    assert_eq!(bench.end(), End::Killed { by: "a test".into() });
}

#[test]
fn stop_request_during_job_after_reboot_ends_as_killed() {
    let bench = bench(Launcher::Detached);
    let mut saving = bench.connect_with_job();
    bench.ends.send(End::Reboot);
    let mut stopping = bench.connect();
    assert_eq!(ask(&mut stopping, &ControlRequest::EndAtReboot), Message::Done);
    bench.complete();
    assert_eq!(receive(&mut saving), Message::Done);
    assert_eq!(bench.end(), End::Killed { by: STOPPED_AT_REBOOT.into() });
}

#[test]
fn reboot_without_requester_is_reboot() {
    let bench = bench(Launcher::Detached);
    let mut client = bench.connect();
    assert_eq!(ask(&mut client, &ControlRequest::EndAtReboot), Message::Done);
    drop(client);
    assert!(is_status(&ask(&mut bench.connect(), &ControlRequest::Status)));
    bench.ends.send(End::Reboot);
    assert_eq!(bench.end(), End::Reboot);
}

#[test]
fn subscriber_gets_ready_during_job() {
    let bench = bench(Launcher::Detached);
    let mut saving = bench.connect_with_job();
    let mut early = bench.connect();
    assert_eq!(ask(&mut early, &ControlRequest::Subscribe), Message::Done);
    bench.ready.write(1).unwrap();
    assert_eq!(receive(&mut early), Message::Ready);
    let mut late = bench.connect();
    assert_eq!(ask(&mut late, &ControlRequest::Subscribe), Message::Done);
    assert_eq!(receive(&mut late), Message::Ready);
    bench.complete();
    assert_eq!(receive(&mut saving), Message::Done);
    late.send(&kill()).unwrap();
    bench.end();
}

#[test]
fn exit_of_launcher_before_identity_ends_template_machine() {
    let (launcher, stream) = UnixStream::pair().unwrap();
    let bench = template_bench(Launcher::Watcher(stream));
    drop(launcher);
    assert_eq!(bench.end(), End::Killed { by: "the exit of the command that started it".into() });
}

#[test]
fn launcher_alone_is_notified_of_agent_without_identity() {
    let (launcher, stream) = UnixStream::pair().unwrap();
    let bench = template_bench(Launcher::Watcher(stream));
    let mut launcher = ControlClient::new(launcher).unwrap();
    let mut other = bench.connect();
    assert_eq!(ask(&mut other, &ControlRequest::Subscribe), Message::Done);
    bench.ready.write(1).unwrap();
    assert_eq!(receive(&mut launcher), Message::Ready);
    assert!(is_status(&ask(&mut other, &ControlRequest::Status)));

    bench.awaits_identity.store(false, Ordering::SeqCst);
    bench.ready.write(1).unwrap();
    assert_eq!(receive(&mut launcher), Message::Ready);
    assert_eq!(receive(&mut other), Message::Ready);
    // From here on, the instance outlives its launcher.
    drop(launcher);
    assert!(is_status(&ask(&mut other, &ControlRequest::Status)));
    other.send(&kill()).unwrap();
    assert_eq!(bench.end(), End::Killed { by: "a test".into() });
}
