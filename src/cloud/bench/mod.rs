//! `wisp bench`: compares instance types on this host.
//!
//! In a round, each type gets a new ephemeral instance, from a template if possible, and takes each measure once. If the
//! memory suffices, instances of all types run at the same time and take turns, so that a period in which the host is
//! slow affects all of them. Only one instance is measured at a time; the others are idle. Rounds repeat until the
//! medians are precise or the budget is used up.

pub mod bound;
pub mod choice;
pub mod comparison;
mod connection;
mod interrupt;
pub mod measure;
mod program;
pub mod report;
mod round;
pub mod schedule;
pub mod statistics;
mod subject;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::bound::{HostFacts, Limits};
use self::interrupt::Interrupt;
use self::measure::{COMMAND, Measure};
use self::report::{MeasureReport, Report, TypeReport};
use self::round::Round;
use self::schedule::{Budget, groups, order};
use super::capacity::cpus;
use super::error::CloudError;
use super::template::{self, Start};
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
    #[error("interrupted by signal {0}; the benchmark's instances were removed")]
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
    pub budget: Budget,
    /// Duration of each workload.
    pub target: Duration,
    pub limited: bool,
    pub overcommit: bool,
    pub network: NetworkMode,
    pub boot_timeout: Duration,
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
    let began = Instant::now();
    let interrupt = Interrupt::watch().map_err(BenchError::Signals)?;
    let mut bench = Bench { home, spec, program: program::unpacked(home)?, interrupt: &interrupt, progress };
    let mut types: Vec<TypeReport> = spec.types.iter().map(|request| bench.begin(request)).collect();
    types.iter().try_for_each(|report| bench.warm_up(report))?;
    let is_concurrent = groups(&measurable(&types, 0), &spec.types, probe::resources().memory_mib).len() <= 1;
    let (mut rounds, mut last) = (0, Duration::ZERO);
    let stop = loop {
        let due = bench.due(&types, rounds);
        if let Some(stop) = spec.budget.stop(rounds, began.elapsed(), last, !due.contains(&true)) {
            break stop;
        }
        let round_began = Instant::now();
        let order = measurable(&types, rounds);
        let groups = if is_concurrent { vec![order] } else { order.into_iter().map(|index| vec![index]).collect() };
        Round { bench: &mut bench, run: rounds + 1, due }.measure(&mut types, &groups)?;
        (rounds, last) = (rounds + 1, round_began.elapsed());
    };
    Ok(Report { host: host_facts(), types, rounds, stop, is_concurrent })
}

/// Returns the types that have not failed, in the order of a round.
fn measurable(types: &[TypeReport], round: u32) -> Vec<usize> {
    order(types.len(), round).into_iter().filter(|index| types[*index].failed.is_none()).collect()
}

fn host_facts() -> HostFacts {
    let (cpu, cache) = probe::processor();
    HostFacts { cpu, cache, cpus: probe::resources().cpus, software_kvm: probe::is_software_kvm() }
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
            pinning: None,
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
        let made = Start::of(self.home, image, cpus, memory_mib, &|| {}).and_then(|start| {
            if let Start::First(task) = start {
                self.report_progress(0, report, "creating a template");
                template::make(&task, image, *boot_timeout, monotonic_ns())?;
            }
            Ok(())
        });
        if let Some(signal) = self.interrupt.signal() {
            return Err(BenchError::Interrupted(signal));
        }
        if let Err(error) = made {
            log::warn!("cannot create a template for {}: {error}", report.request.instance_type.name);
        }
        Ok(())
    }

    /// Returns, for each measure, true if it is due in the next round: some type can still be measured and is not
    /// precise yet.
    fn due(&self, types: &[TypeReport], rounds: u32) -> Vec<bool> {
        let count = types.first().map_or(0, |first| first.results.len());
        let is_due = |index: usize| {
            let is_once = self.is_measured_once(types[0].results[index].measure);
            let mut left = types.iter().filter(|report| report.failed.is_none()).map(|report| &report.results[index]);
            (rounds == 0 || !is_once)
                && left.any(|result| {
                    let is_precise = |summary: statistics::Summary| summary.is_precise(self.spec.budget.precision);
                    result.not_measured.is_none() && !result.summary().is_some_and(is_precise)
                })
        };
        (0..count).map(is_due).collect()
    }

    /// Returns true for a cold boot on software KVM, where boots are slow, unless the image cannot have a template, so
    /// that each launch is a boot.
    fn is_measured_once(&self, measure: &Measure) -> bool {
        measure.name == "boot" && template::can_have(&self.spec.image) && probe::is_software_kvm()
    }
}
