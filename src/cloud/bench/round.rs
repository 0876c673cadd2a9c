//! A round of a bench: each type takes each measure once, in a new instance.

use super::measure::{COMMAND, Measure};
use super::report::TypeReport;
use super::subject::Subject;
use super::{Bench, BenchError};
use crate::capacity::cpus;
use crate::template;

pub(super) struct Round<'a, 'b> {
    pub bench: &'a mut Bench<'b>,
    /// Number of the run, starting at 1.
    pub run: u32,
    /// For each measure, true if it is due.
    pub due: Vec<bool>,
}

/// An instance and the index of its type.
struct Running<'a> {
    index: usize,
    subject: Subject<'a>,
}

impl<'b> Round<'_, 'b> {
    /// Measures types in groups. The instances of a group run at the same time.
    pub(super) fn measure(&mut self, types: &mut [TypeReport], groups: &[Vec<usize>]) -> Result<(), BenchError> {
        for index in groups.iter().flatten() {
            let result = self.boot(&mut types[*index]);
            self.checked(result, &mut types[*index])?;
        }
        for group in groups {
            let mut running = Vec::new();
            for index in group.iter().copied().filter(|index| types[*index].failed.is_none()).collect::<Vec<_>>() {
                let subject = self.launch(&mut types[index]);
                let subject = self.checked(subject, &mut types[index])?.flatten();
                running.extend(subject.map(|subject| Running { index, subject }));
            }
            self.take_turns(types, &mut running)?;
        }
        Ok(())
    }

    /// Takes all measures. In each measure, the types have another order than in the one before.
    fn take_turns(&mut self, types: &mut [TypeReport], running: &mut Vec<Running>) -> Result<(), BenchError> {
        for measure in 0..self.due.len() {
            for Running { index, subject } in running.iter_mut() {
                let result = self.take(measure, &mut types[*index], subject);
                self.checked(result, &mut types[*index])?;
            }
            running.retain(|one| types[one.index].failed.is_none());
            if !running.is_empty() {
                running.rotate_left(1);
            }
        }
        Ok(())
    }

    /// Records an error as the failure of this type. Fails only if a signal interrupted the benchmark.
    fn checked<T>(&self, result: Result<T, BenchError>, report: &mut TypeReport) -> Result<Option<T>, BenchError> {
        if let Some(signal) = self.bench.interrupt.signal() {
            return Err(BenchError::Interrupted(signal));
        }
        result.map(Some).or_else(|error| {
            report.failed = Some(error.to_string());
            Ok(None)
        })
    }

    /// Returns true if a measure that `is_wanted` is due and has not failed.
    fn wants(&self, report: &TypeReport, is_wanted: impl Fn(&Measure) -> bool) -> bool {
        let due = report.results.iter().zip(&self.due).filter(|(_, due)| **due);
        due.into_iter().any(|(result, _)| result.not_measured.is_none() && is_wanted(result.measure))
    }

    /// Measures a cold boot if it is due. If the image cannot have a template, [`Round::launch`] measures the boot.
    fn boot(&mut self, report: &mut TypeReport) -> Result<(), BenchError> {
        if !template::can_have(&self.bench.spec.image) || !self.wants(report, |measure| measure.name == "boot") {
            return Ok(());
        }
        self.report_progress(report, "boot");
        let Bench { home, spec, interrupt, .. } = *self.bench;
        let subject = Subject::start(home, spec, report.request, None, interrupt)?;
        note_start(report, "boot", &subject);
        Ok(())
    }

    /// Starts an instance, from a template if there is one, and prepares it for the measures that are due, if any.
    fn launch(&mut self, report: &mut TypeReport) -> Result<Option<Subject<'b>>, BenchError> {
        let has_warm = template::can_have(&self.bench.spec.image);
        if !self.wants(report, |measure| measure.name != "boot" || !has_warm) {
            return Ok(None);
        }
        self.report_progress(report, "launch");
        let Bench { home, spec, interrupt, .. } = *self.bench;
        let request = report.request;
        let warm = template::find(home, &spec.image, cpus(&request), request.memory_mib);
        let subject = Subject::start(home, spec, request, warm.as_ref(), interrupt)?;
        report.limits = subject.limits();
        report.pinning = Some(subject.pin());
        if warm.is_some() {
            note_start(report, "warm-launch", &subject);
        } else {
            note_start(report, "boot", &subject);
            let why = "there is no template for this image and size (see `wisp image warm`)";
            report.note("warm-launch", Err(why.into()));
        }
        self.prepare(report, &subject)?;
        Ok(Some(subject))
    }

    /// Copies the workloads to the guest and writes the test file, if they are needed.
    fn prepare(&mut self, report: &mut TypeReport, subject: &Subject) -> Result<(), BenchError> {
        if self.wants(report, |measure| measure.workload().is_some()) {
            self.report_progress(report, "copying the workloads");
            subject.copy_program(&self.bench.program)?;
        }
        if self.wants(report, Measure::is_of_disk) {
            self.report_progress(report, "writing the test file");
            if let Err(why) = subject.prepare_disk()? {
                let of_disk = report.results.iter_mut().filter(|result| result.measure.is_of_disk());
                of_disk.for_each(|result| result.note(Err(why.clone())));
            }
        }
        Ok(())
    }

    /// Takes one measure if it is due. The launch has already taken the start times.
    fn take(&mut self, index: usize, report: &mut TypeReport, subject: &mut Subject) -> Result<(), BenchError> {
        let result = &report.results[index];
        let measure = result.measure;
        if !self.due[index] || result.not_measured.is_some() {
            return Ok(());
        }
        let result = if measure.workload().is_some() {
            self.report_progress(report, measure.name);
            subject.measure(measure)?
        } else if let (Some(command), true) = (&self.bench.spec.command, measure.name == COMMAND.name) {
            self.report_progress(report, "command");
            subject.run(command)?
        } else {
            return Ok(());
        };
        report.results[index].note(result);
        Ok(())
    }

    fn report_progress(&mut self, report: &TypeReport, what: &'static str) {
        self.bench.report_progress(self.run, report, what);
    }
}

fn note_start(report: &mut TypeReport, name: &str, subject: &Subject) {
    report.note(name, subject.start_sample().ok_or_else(|| "the instance's start timeline is incomplete".into()));
}
