//! `wisp bench`: compares instance types on this host.
//!
//! Each run starts a new ephemeral instance of a type, from a template if possible, and takes the requested measures in
//! it. Runs of all types alternate, so that a period in which the host is slow affects all of them. One instance runs
//! at a time.

pub mod bound;
pub mod choice;
pub mod comparison;
mod connection;
mod interrupt;
pub mod measure;
mod program;
pub mod statistics;
mod subject;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use self::bound::{HostFacts, Limits, Sample};
use self::interrupt::Interrupt;
use self::measure::{COMMAND, Measure};
use self::statistics::Summary;
use self::subject::Subject;
use super::capacity::cpus;
use super::error::CloudError;
use super::template;
use ec2::capacity::{self, InstanceSize};
use ec2::network::NetworkMode;
use machine::timeline::monotonic_ns;
use node::home::{Home, HomeError};
use node::image::Image;
use node::instance::{ConsoleTail, MachineError};
use node::probe;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
    #[error("the guest ended during a measurement{0}")]
    GuestGone(ConsoleTail),
    #[error("cannot write {}: {source}", path.display())]
    Program { path: PathBuf, source: io::Error },
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
    #[error("interrupted by signal {0}; the benchmark's instance was removed")]
    Interrupted(i32),
}

impl From<MachineError> for BenchError {
    fn from(error: MachineError) -> BenchError {
        CloudError::from(error).into()
    }
}

#[derive(Debug, Clone)]
pub struct BenchSpec {
    pub image: Image,
    pub types: Vec<InstanceSize>,
    pub measures: Vec<&'static Measure>,
    /// The user's command, run by the guest's shell.
    pub command: Option<String>,
    pub runs: u32,
    /// Duration of each workload.
    pub target: Duration,
    pub limited: bool,
    pub overcommit: bool,
    pub network: NetworkMode,
    pub boot_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Report {
    pub host: HostFacts,
    /// In the order of [`BenchSpec::types`].
    pub types: Vec<TypeReport>,
}

#[derive(Debug, Clone)]
pub struct TypeReport {
    pub request: InstanceSize,
    /// Reason why the type was not measured, or why its measurements were stopped.
    pub failed: Option<String>,
    pub limits: Limits,
    pub results: Vec<MeasureReport>,
}

#[derive(Debug, Clone)]
pub struct MeasureReport {
    pub measure: &'static Measure,
    /// At most one per run.
    pub samples: Vec<Sample>,
    /// Reason why an attempt produced no figure.
    pub not_measured: Option<String>,
}

impl MeasureReport {
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.samples.iter().map(|sample| sample.figure).collect::<Vec<_>>())
    }

    fn note(&mut self, result: Result<Sample, String>) {
        match result {
            Ok(sample) => self.samples.push(sample),
            Err(why) => self.not_measured = Some(why),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct BenchProgress {
    /// Number of the run, starting at 1. 0 while templates are created.
    pub run: u32,
    pub instance_type: &'static str,
    pub what: &'static str,
}

/// Runs the benchmark. If a type fails, its report contains the error, and the other types continue.
pub fn run(home: &Home, spec: &BenchSpec, progress: &mut dyn FnMut(BenchProgress)) -> Result<Report, BenchError> {
    let interrupt = Interrupt::watch().map_err(BenchError::Signals)?;
    let mut bench = Bench { home, spec, program: program::unpacked(home)?, interrupt: &interrupt, progress };
    let mut types: Vec<TypeReport> = spec.types.iter().map(|request| bench.begin(request)).collect();
    types.iter().try_for_each(|report| bench.warm_up(report))?;
    for run in 1..=spec.runs {
        for turn in 0..types.len() {
            let first = run as usize - 1;
            let index = (first + turn) % types.len();
            bench.run(&mut types[index], run)?;
        }
    }
    let (cpu, cache) = probe::processor();
    let host = HostFacts { cpu, cache, cpus: probe::resources().cpus, software_kvm: probe::is_software_kvm() };
    Ok(Report { host, types })
}

struct Bench<'a> {
    home: &'a Home,
    spec: &'a BenchSpec,
    program: PathBuf,
    interrupt: &'a Interrupt,
    progress: &'a mut dyn FnMut(BenchProgress),
}

impl Bench<'_> {
    fn begin(&self, request: &InstanceSize) -> TypeReport {
        let BenchSpec { measures, command, overcommit, .. } = self.spec;
        let measures = measures.iter().copied().chain(command.iter().map(|_| &COMMAND));
        let result = |measure| MeasureReport { measure, samples: Vec::new(), not_measured: None };
        let kind = request.instance_type;
        let fits = kind.check_launchable().and_then(|()| capacity::check(request, probe::resources(), *overcommit));
        TypeReport {
            request: *request,
            failed: fits.err().map(|error| error.to_string()),
            limits: Limits::default(),
            results: measures.map(result).collect(),
        }
    }

    fn report_progress(&mut self, run: u32, report: &TypeReport, what: &'static str) {
        (self.progress)(BenchProgress { run, instance_type: report.request.instance_type.name, what });
    }

    /// Creates a template for the type if none exists and its measures can use one. If that fails, instances cold-boot.
    fn warm_up(&mut self, report: &TypeReport) -> Result<(), BenchError> {
        let BenchSpec { image, boot_timeout, .. } = self.spec;
        let only_boots = report.results.iter().all(|result| result.measure.name == "boot");
        let InstanceSize { memory_mib, .. } = report.request;
        let cpus = cpus(&report.request);
        if report.failed.is_some() || only_boots || !template::can_have(image) {
            return Ok(());
        }
        if template::find(self.home, image, cpus, memory_mib).is_none() {
            self.report_progress(0, report, "creating a template");
            let made = template::make(self.home, image, cpus, memory_mib, *boot_timeout, monotonic_ns());
            if let Some(signal) = self.interrupt.signal() {
                return Err(BenchError::Interrupted(signal));
            }
            if let Err(error) = made {
                log::warn!("cannot create a template for {}: {error}", report.request.instance_type.name);
            }
        }
        Ok(())
    }

    fn run(&mut self, report: &mut TypeReport, run: u32) -> Result<(), BenchError> {
        if report.failed.is_some() {
            return Ok(());
        }
        let result = self.boot(report, run).and_then(|()| self.launch(report, run));
        self.checked(result, report)
    }

    /// Records an error as the failure of this type. Fails only if a signal interrupted the benchmark.
    fn checked(&self, result: Result<(), BenchError>, report: &mut TypeReport) -> Result<(), BenchError> {
        if let Some(signal) = self.interrupt.signal() {
            return Err(BenchError::Interrupted(signal));
        }
        if let Err(error) = result {
            report.failed = Some(error.to_string());
        }
        Ok(())
    }

    /// Measures a cold boot if requested. On software KVM, where boots are slow, this happens in the first run only. If
    /// the image cannot have a template, [`Bench::launch`] measures the boot instead.
    fn boot(&mut self, report: &mut TypeReport, run: u32) -> Result<(), BenchError> {
        let has_warm = template::can_have(&self.spec.image);
        let is_due = run == 1 || !probe::is_software_kvm();
        if !is_due || !has_warm || !report.results.iter().any(|result| result.measure.name == "boot") {
            return Ok(());
        }
        self.report_progress(run, report, "boot");
        let request = report.request;
        let subject = Subject::start(self.home, self.spec, &request, None, self.interrupt)?;
        note_start(report, "boot", &subject);
        Ok(())
    }

    /// Starts an instance, from a template if there is one, and takes the remaining measures in it.
    fn launch(&mut self, report: &mut TypeReport, run: u32) -> Result<(), BenchError> {
        let BenchSpec { image, command, .. } = self.spec;
        let request = report.request;
        let is_wanted = |result: &MeasureReport| result.not_measured.is_none();
        let has_warm = template::can_have(image);
        if !report.results.iter().any(|result| is_wanted(result) && (result.measure.name != "boot" || !has_warm)) {
            return Ok(());
        }
        self.report_progress(run, report, "launch");
        let warm = template::find(self.home, image, cpus(&request), request.memory_mib);
        let mut subject = Subject::start(self.home, self.spec, &request, warm.as_ref(), self.interrupt)?;
        report.limits = subject.limits();
        if warm.is_some() {
            note_start(report, "warm-launch", &subject);
        } else {
            note_start(report, "boot", &subject);
            let why = "there is no template for this image and size (see `wisp image warm`)";
            note(report, "warm-launch", Err(why.into()));
        }
        let workloads = |report: &TypeReport| {
            let all = report.results.iter().filter(|result| result.measure.workload().is_some() && is_wanted(result));
            all.map(|result| result.measure).collect::<Vec<_>>()
        };
        if !workloads(report).is_empty() {
            self.report_progress(run, report, "copying the workloads");
            subject.copy_program(&self.program)?;
        }
        if workloads(report).iter().any(|measure| measure.is_of_disk()) {
            self.report_progress(run, report, "writing the test file");
            if let Err(why) = subject.prepare_disk()? {
                let of_disk = report.results.iter_mut().filter(|result| result.measure.is_of_disk());
                of_disk.for_each(|result| result.note(Err(why.clone())));
            }
        }
        for measure in workloads(report) {
            self.report_progress(run, report, measure.name);
            note(report, measure.name, subject.measure(measure)?);
        }
        if let Some(command) = command
            && report.results.iter().any(|result| result.measure.name == COMMAND.name && is_wanted(result))
        {
            self.report_progress(run, report, "command");
            note(report, COMMAND.name, subject.run(command)?);
        }
        Ok(())
    }
}

fn note_start(report: &mut TypeReport, name: &str, subject: &Subject) {
    note(report, name, subject.start_sample().ok_or_else(|| "the instance's start timeline is incomplete".into()));
}

/// Records the result of a measure, if it was requested.
fn note(report: &mut TypeReport, name: &str, result: Result<Sample, String>) {
    if let Some(wanted) = report.results.iter_mut().find(|wanted| wanted.measure.name == name) {
        wanted.note(result);
    }
}
