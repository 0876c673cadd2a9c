//! The instance that a run of a benchmark measures. It is new, with its type's initial CPU credits and burst balances.

use std::io;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::bound::{Limits, Observed, Sample};
use super::connection;
use super::interrupt::Interrupt;
use super::measure::{About, Measure};
use super::{BenchError, BenchSpec};
use crate::capacity::cpus;
use crate::limits::throttled_time;
use crate::network::NetworkSpec;
use crate::run::{Boot, RunSpec};
use crate::template::Template;
use ec2::capacity::InstanceSize;
use ec2::credits::CreditMode;
use ec2::network::{Protocol, PublishedPort};
use machine::control::VmmStatus;
use machine::timeline::{Mark, monotonic_ns};
use node::guest::{Agent, Captured, ExecRequest, Holes};
use node::home::Home;
use node::instance::{EphemeralInstance, MachineError};

const PROGRAM: &str = "/root/wisp-workload";
const FILE: &str = "/root/wisp-workload.data";
/// Maximum size of the test file in bytes. On a slow disk, the workload stops writing it earlier.
const FILE_BYTES: u64 = 64 << 20;
/// Memory to measure: the guest's memory divided by this, and at most this many MiB.
const MEMORY_PART: u64 = 4;
const MEMORY_MIB: u64 = 256;
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of bytes kept of a program's output.
const OUTPUT: usize = 64 << 10;
/// Number of lines to show of a failed command's output.
const LINES: usize = 3;

/// Line that a workload prints when it starts to measure.
const BEGIN: &[u8] = b"begin\n";

/// The output, the VMM's status when the workload began, and the count and time at the host's end of the connection.
type Measured = (Captured, Option<(VmmStatus, Instant)>, Option<io::Result<(u64, Duration)>>);

/// The result that a workload prints.
#[derive(Debug, Deserialize)]
struct Done {
    amount: u64,
    elapsed_ns: u64,
    threads: u64,
    bytes: u64,
}

pub(super) struct Subject<'a> {
    instance: EphemeralInstance,
    request: InstanceSize,
    interrupt: &'a Interrupt,
    port: Option<SocketAddrV4>,
    target: Duration,
    /// Status when the agent became ready.
    status: VmmStatus,
}

impl<'a> Subject<'a> {
    /// Starts an instance, from the template `warm` if given, and waits until its agent is ready.
    pub(super) fn start(
        home: &Home,
        spec: &BenchSpec,
        request: InstanceSize,
        warm: Option<&Template>,
        interrupt: &'a Interrupt,
    ) -> Result<Subject<'a>, BenchError> {
        let wants_port = spec.measures.iter().any(|measure| measure.is_of_network());
        let port = if wants_port { connection::free_port().ok() } else { None };
        let published =
            port.map(|host| PublishedPort { host, guest_port: connection::GUEST_PORT, protocol: Protocol::Tcp });
        let network =
            NetworkSpec { mode: spec.network, published: published.into_iter().collect(), ..NetworkSpec::default() };
        let run = RunSpec {
            cpus: cpus(&request),
            memory_mib: request.memory_mib,
            boot: Boot::Image(Box::new(spec.image.clone())),
            disks: Vec::new(),
            cmdline: None,
            console: false,
            network: Some(network),
            limits: spec.limited.then_some(request.instance_type),
        };
        let mut instance = run.start(home, warm, monotonic_ns())?;
        interrupt.guard(&instance.dir().vmm_directory());
        let ready = match instance.wait_ready(spec.boot_timeout) {
            Ok(false) => Err(instance.not_ready(spec.boot_timeout)),
            Ok(true) => instance.status(),
            Err(error) => Err(error),
        };
        let status = ready.inspect_err(|_| interrupt.release(&instance.dir().vmm_directory()))?;
        Ok(Subject { instance, request, interrupt, port, target: spec.target, status })
    }

    /// Returns the time from the call of [`Subject::start`] until the agent was ready.
    pub(super) fn start_sample(&self) -> Option<Sample> {
        let took = Duration::from_nanos(self.status.timeline.between(Mark::ProcessStart, Mark::AgentReady)?);
        let vcpus = self.request.vcpus;
        let observed = observe(&VmmStatus::default(), &self.status, took, took * vcpus, vcpus);
        Some(Sample { figure: took.as_secs_f64(), bytes: 0, observed })
    }

    /// Pins the vCPUs. Returns their CPUs, or the reason why they are not pinned.
    pub(super) fn pin(&self) -> Result<Vec<usize>, String> {
        self.instance.pin_vcpus(self.request.vcpus).map_err(|error| error.to_string())
    }

    pub(super) fn limits(&self) -> Limits {
        let mode = |can_owe| if can_owe { CreditMode::Unlimited } else { CreditMode::Standard };
        Limits {
            volume: self.status.disks.first().and_then(|disk| disk.limits),
            path: self.status.disk_limits,
            network: self.status.net_limits.map(|limits| limits.bytes),
            credits: self.status.cpu_budget.as_ref().map(|now| mode(now.budget.can_owe)),
        }
    }

    pub(super) fn copy_program(&self, program: &Path) -> Result<(), MachineError> {
        let copied = self.agent()?.copy_to_guest(program, PROGRAM.as_ref(), Holes::Fill, &mut |_| ());
        copied.map(drop).map_err(self.instance.dir().guest_error())
    }

    /// Writes the test file for disk measures. The inner error is the reason why the workload failed.
    pub(super) fn prepare_disk(&self) -> Result<Result<(), String>, BenchError> {
        let captured = self.capture(self.workload("disk-prepare", 1))?;
        Ok(done(&captured).map(drop))
    }

    /// Takes a measure once. The inner error is the reason why there is no figure.
    pub(super) fn measure(&mut self, measure: &Measure) -> Result<Result<Sample, String>, BenchError> {
        let Some(workload) = measure.workload() else { return Ok(Err("the measure has no workload".into())) };
        if measure.is_of_network() && self.port.is_none() {
            return Ok(Err("this host has no free port to forward to the guest".into()));
        }
        let threads = if measure.about == About::AllCpus { self.request.vcpus } else { 1 };
        let (captured, before, counted) = self.measured(measure, self.workload(workload, threads))?;
        let took = before.as_ref().map(|(_, at)| at.elapsed());
        let after = self.instance.status()?;
        let done = match (done(&captured), counted) {
            // If both ends failed, the host's error is reported: the guest knows only that nothing connected to it.
            (_, Some(Err(error))) => Err(format!("the port forwarded to the guest failed: {error}")),
            (Ok(done), Some(Ok((amount, elapsed)))) => Ok((amount, elapsed, done)),
            (Ok(done), None) => Ok((done.amount, Duration::from_nanos(done.elapsed_ns), done)),
            (Err(why), _) => Err(why),
        };
        Ok(done.and_then(|(amount, elapsed, Done { threads, bytes, elapsed_ns, .. })| {
            let figure = measure.figure(amount, elapsed).ok_or("the workload completed no work in the given time")?;
            let (before, took) = before.map(|(status, _)| status).zip(took).ok_or("the workload did not start")?;
            let usable = Duration::from_nanos(elapsed_ns) * u32::try_from(threads).unwrap_or(1);
            Ok(Sample { figure, bytes, observed: observe(&before, &after, took, usable, self.request.vcpus) })
        }))
    }

    /// Runs a workload. The status is missing if the workload did not begin. Only network measures have a count.
    fn measured(&mut self, measure: &Measure, request: ExecRequest) -> Result<Measured, BenchError> {
        let agent = self.agent()?;
        let (instance, target) = (&mut self.instance, self.target);
        let port = self.port.filter(|_| measure.is_of_network());
        let mut before = None;
        let (captured, counted) = thread::scope(|scope| {
            let (sender, started) = mpsc::channel();
            let counter = port.map(|port| {
                scope.spawn(move || {
                    started.recv().ok().map(|()| match measure.about {
                        About::Network => connection::receive(port),
                        _ => connection::echo(port, target),
                    })
                })
            });
            let captured = agent.capture(request, OUTPUT, |output| {
                if before.is_none() && output.starts_with(BEGIN) {
                    before = instance.status().ok().map(|status| (status, Instant::now()));
                    // Without a port, there is no receiver.
                    let _ = sender.send(());
                }
            });
            drop(sender);
            (captured, counter.and_then(|counter| counter.join().ok()).flatten())
        });
        Ok((captured.map_err(|error| self.explain(error))?, before, counted))
    }

    /// Runs the user's command once. The inner error is the reason why it failed.
    pub(super) fn run(&mut self, command: &str) -> Result<Result<Sample, String>, BenchError> {
        let argv = ["/bin/sh", "-c", command].map(Into::into).into();
        let before = self.instance.status()?;
        let began = Instant::now();
        let captured = self.capture(ExecRequest { argv, ..ExecRequest::default() })?;
        let took = began.elapsed();
        let after = self.instance.status()?;
        let vcpus = self.request.vcpus;
        let observed = observe(&before, &after, took, took * vcpus, vcpus);
        Ok(succeeded(&captured).map(|()| Sample { figure: took.as_secs_f64(), bytes: 0, observed }))
    }

    fn workload(&self, name: &str, threads: u32) -> ExecRequest {
        let bytes = match name {
            "memory-bandwidth" | "memory-latency" => (self.request.memory_mib / MEMORY_PART).min(MEMORY_MIB) << 20,
            _ => FILE_BYTES,
        };
        let options = [
            ("--ms", self.target.as_millis().to_string()),
            ("--threads", threads.to_string()),
            ("--file", FILE.to_string()),
            ("--bytes", bytes.to_string()),
            ("--port", connection::GUEST_PORT.to_string()),
        ];
        let options = options.into_iter().flat_map(|(name, value)| [name.to_string(), value]);
        let argv = [PROGRAM.to_string(), name.to_string()].into_iter().chain(options).map(Into::into).collect();
        ExecRequest { argv, ..ExecRequest::default() }
    }

    fn capture(&self, request: ExecRequest) -> Result<Captured, BenchError> {
        self.agent()?.capture(request, OUTPUT, |_| ()).map_err(|error| self.explain(error))
    }

    fn agent(&self) -> Result<Agent, MachineError> {
        self.instance.dir().agent(AGENT_TIMEOUT)
    }

    /// Adds the last console lines to the error if the guest has ended.
    fn explain(&self, error: node::guest::Error) -> BenchError {
        match error {
            node::guest::Error::GuestGone => BenchError::GuestGone(self.instance.dir().console_tail()),
            error => self.instance.dir().guest_error()(error).into(),
        }
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        self.interrupt.release(&self.instance.dir().vmm_directory());
    }
}

/// Returns an error with the exit code and the last lines of output if the command failed.
fn succeeded(captured: &Captured) -> Result<(), String> {
    let code = captured.status.exit_code();
    if code == 0 {
        return Ok(());
    }
    let text = [&captured.stderr, &captured.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_string());
    let said = text.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    // The guest controls this output, so remove characters that could move a terminal's cursor.
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> = said.lines().map(clean).collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join(" | ");
    Err(if last.is_empty() { format!("exit code {code}") } else { format!("exit code {code}: {last}") })
}

fn done(captured: &Captured) -> Result<Done, String> {
    succeeded(captured)?;
    let text = String::from_utf8_lossy(&captured.stdout);
    let last = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(last).map_err(|error| format!("cannot parse the workload's result: {error}"))
}

/// Computes observations from two statuses, `took` apart. `usable` is the CPU time available to the workload's threads.
fn observe(before: &VmmStatus, after: &VmmStatus, took: Duration, usable: Duration, vcpus: u32) -> Observed {
    let part = |ns: u64, of: Duration| ns as f64 / of.as_nanos().max(1) as f64;
    let (throttled_before, throttled) = (throttled_time(before), throttled_time(after));
    let since = |before: u64, after: u64| after.saturating_sub(before);
    Observed {
        cpu_share: part(since(before.cpu_time_ns, after.cpu_time_ns), usable),
        cpu_throttled: part(since(throttled_before.cpus_ns, throttled.cpus_ns), took * vcpus),
        disk_throttled: part(since(throttled_before.disks_ns, throttled.disks_ns), took),
        net_throttled: part(since(throttled_before.network_ns, throttled.network_ns), took),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::control::DiskRecord;
    use node::guest::ExitStatus;

    fn captured(code: i32, stdout: &str, stderr: &str) -> Captured {
        Captured { status: ExitStatus::Exited(code), stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn failed_command_reports_code_and_last_lines() {
        assert_eq!(succeeded(&captured(0, "", "a warning")), Ok(()));
        assert_eq!(succeeded(&captured(3, "", "")), Err("exit code 3".into()));
        let error = succeeded(&captured(1, "out", "one\ntwo\nthree\n\x1b[2Jfour\n"));
        assert_eq!(error, Err("exit code 1: two | three | [2Jfour".into()));
        assert_eq!(succeeded(&captured(1, "out", "")), Err("exit code 1: out".into()));
    }

    #[test]
    fn workload_result_is_last_line() {
        let line = r#"{"amount":5,"elapsed_ns":7,"threads":2,"bytes":0}"#;
        let answer = done(&captured(0, &format!("begin\n{line}\n"), "")).unwrap();
        assert_eq!((answer.amount, answer.elapsed_ns, answer.threads), (5, 7, 2));
        for nonsense in ["", "begin\n", "{}", r#"{"amount":-1,"elapsed_ns":7,"threads":2,"bytes":0}"#] {
            assert!(done(&captured(0, nonsense, "")).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn observations_are_differences_of_statuses() {
        let disk = |throttled_ns| vec![DiskRecord { throttled_ns, ..DiskRecord::default() }];
        let before = VmmStatus { cpu_time_ns: 1_000, disks: disk(100), ..VmmStatus::default() };
        let after = VmmStatus { cpu_time_ns: 1_800, disks: disk(600), ..VmmStatus::default() };
        let took = Duration::from_nanos(1_000);
        let observed = observe(&before, &after, took, took * 2, 2);
        assert_eq!(observed, Observed { cpu_share: 0.4, cpu_throttled: 0.0, disk_throttled: 0.5, net_throttled: 0.0 });
    }
}
