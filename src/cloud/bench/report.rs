//! The results of a bench.

use super::bound::{HostFacts, Limits, Sample};
use super::measure::Measure;
use super::schedule::Stop;
use super::statistics::Summary;
use ec2::capacity::InstanceSize;

#[derive(Debug, Clone)]
pub struct Report {
    pub host: HostFacts,
    /// In the order of [`super::BenchSpec::types`].
    pub types: Vec<TypeReport>,
    /// Number of completed rounds. In a round, each type runs once.
    pub rounds: u32,
    pub stop: Stop,
    /// True if guests of all types ran at the same time, so that types alternate within a round.
    pub is_concurrent: bool,
}

#[derive(Debug, Clone)]
pub struct TypeReport {
    pub request: InstanceSize,
    /// Reason why the type was not measured, or why its measurements were stopped.
    pub failed: Option<String>,
    pub limits: Limits,
    /// Host CPUs of the vCPUs, or the reason why the vCPUs are not pinned. `None` if no guest was measured.
    pub pinning: Option<Result<Vec<usize>, String>>,
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

impl TypeReport {
    /// Records the result of a measure, if it was requested.
    pub(super) fn note(&mut self, name: &str, result: Result<Sample, String>) {
        if let Some(wanted) = self.results.iter_mut().find(|wanted| wanted.measure.name == name) {
            wanted.note(result);
        }
    }
}

impl MeasureReport {
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.samples.iter().map(|sample| sample.figure).collect::<Vec<_>>())
    }

    pub(super) fn note(&mut self, result: Result<Sample, String>) {
        match result {
            Ok(sample) => self.samples.push(sample),
            Err(why) => self.not_measured = Some(why),
        }
    }
}
