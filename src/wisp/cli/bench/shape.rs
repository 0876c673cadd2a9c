//! Formats a bench as JSON: all figures of all runs, and the conclusions.

use serde::Serialize;

use super::Shown;
use crate::cli::limits::{DiskLimitsShape, RateShape};
use cloud::bench::bound::By;
use cloud::bench::choice::Difference;
use cloud::bench::comparison::{Compared, ComparisonRow, Doubt};
use cloud::bench::measure::Better;
use cloud::bench::report::TypeReport;
use cloud::bench::schedule::Stop;
use cloud::bench::statistics::{CONFIDENCE_PERCENT, Interval};
use ec2::api::Timestamp;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BenchResult<'a> {
    bench: Bench<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Bench<'a> {
    wisp_version: &'static str,
    command_line: &'a [String],
    start_time: Timestamp,
    image_name: &'a str,
    /// Number of completed runs of each type.
    runs: u32,
    stopped_by: &'static str,
    concurrent_guests: bool,
    limited: bool,
    confidence_percent: u32,
    price_list: &'a str,
    host: Host<'a>,
    instance_types: Vec<TypeShape<'a>>,
    measures: Vec<MeasureShape<'a>>,
    choice: Choice<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Host<'a> {
    cpu: &'a str,
    cpus: u32,
    kvm: &'static str,
    #[serde(rename = "LastCacheBytes")]
    cache: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Choice<'a> {
    within_percent: f64,
    ordered_by: &'static str,
    measures: &'a [&'static str],
    instance_type: Option<&'a str>,
    no_difference_found: bool,
    uncertain_measures: Vec<Uncertain>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Uncertain {
    name: &'static str,
    slower_by_at_most_percent: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TypeShape<'a> {
    instance_type: &'static str,
    #[serde(rename = "VCpus")]
    vcpus: u32,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u64,
    price: Option<f64>,
    pinned_cpus: Option<&'a [usize]>,
    not_pinned: Option<&'a str>,
    failed: Option<&'a str>,
    limits: TypeLimits,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TypeLimits {
    baseline_percent: Option<f64>,
    cpu_credits: Option<&'static str>,
    root_volume: Option<DiskLimitsShape>,
    ebs: Option<DiskLimitsShape>,
    network_bytes_per_second: Option<RateShape>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MeasureShape<'a> {
    name: &'a str,
    title: &'a str,
    unit: &'a str,
    better: &'static str,
    cheapest_within: Option<&'a str>,
    results: Vec<ResultShape<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ResultShape<'a> {
    instance_type: &'a str,
    samples: Vec<f64>,
    cpu_shares: Vec<f64>,
    not_measured: Option<&'a str>,
    #[serde(flatten)]
    summary: Option<SummaryShape<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SummaryShape<'a> {
    min: f64,
    median: f64,
    p95: f64,
    interval: Option<IntervalShape>,
    difference: Option<&'static str>,
    slower_by_percent: Option<f64>,
    slower_by_at_most_percent: Option<f64>,
    limit_of: &'static str,
    limit: &'a str,
    limit_detail: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct IntervalShape {
    low: f64,
    high: f64,
}

/// Returns the results of the bench for JSON.
pub fn shape<'a>(shown: &'a Shown) -> BenchResult<'a> {
    let host = &shown.report.host;
    let comparison = &shown.comparison;
    let bench = Bench {
        wisp_version: env!("CARGO_PKG_VERSION"),
        command_line: &shown.command_line,
        start_time: shown.began,
        image_name: shown.image,
        runs: shown.report.rounds,
        stopped_by: match shown.report.stop {
            Stop::Complete => "complete",
            Stop::Runs => "runs",
            Stop::Time => "time",
        },
        concurrent_guests: shown.report.is_concurrent,
        limited: shown.limited,
        confidence_percent: CONFIDENCE_PERCENT,
        price_list: &shown.price_list,
        host: Host {
            cpu: &host.cpu,
            cpus: host.cpus,
            kvm: if host.software_kvm { "software" } else { "hardware" },
            cache: host.cache,
        },
        instance_types: shown.report.types.iter().zip(&shown.prices).map(of_type).collect(),
        measures: comparison.measures.iter().map(|compared| measure(shown, compared)).collect(),
        choice: Choice {
            within_percent: shown.within,
            ordered_by: if comparison.has_prices { "price" } else { "size" },
            measures: &comparison.over,
            instance_type: comparison.cheapest.map(|subject| shown.name(subject)),
            no_difference_found: comparison.no_difference,
            uncertain_measures: comparison.doubts.iter().map(uncertain).collect(),
        },
    };
    BenchResult { bench }
}

fn uncertain(doubt: &Doubt) -> Uncertain {
    Uncertain { name: doubt.measure, slower_by_at_most_percent: doubt.largest_slowdown.map(percent) }
}

fn percent(share: f64) -> f64 {
    share * 100.0
}

fn of_type<'a>((of, price): (&'a TypeReport, &Option<f64>)) -> TypeShape<'a> {
    TypeShape {
        instance_type: of.request.instance_type.name,
        vcpus: of.request.vcpus,
        memory_mib: of.request.memory_mib,
        price: *price,
        pinned_cpus: of.pinning.as_ref().and_then(|pinning| pinning.as_deref().ok()),
        not_pinned: of.pinning.as_ref().and_then(|pinning| pinning.as_ref().err()).map(String::as_str),
        failed: of.failed.as_deref(),
        limits: TypeLimits {
            baseline_percent: of.request.instance_type.credits.map(|credits| credits.baseline_percent),
            cpu_credits: of.limits.credits.map(|mode| mode.as_str()),
            root_volume: of.limits.volume.as_ref().map(DiskLimitsShape::from),
            ebs: of.limits.path.as_ref().map(DiskLimitsShape::from),
            network_bytes_per_second: of.limits.network.as_ref().map(RateShape::from),
        },
    }
}

fn measure<'a>(shown: &'a Shown, Compared { measure, entries, cheapest }: &'a Compared) -> MeasureShape<'a> {
    MeasureShape {
        name: measure.name,
        title: measure.title,
        unit: measure.unit,
        better: match measure.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        },
        cheapest_within: cheapest.map(|subject| shown.name(subject)),
        results: entries.iter().map(|entry| result(shown, entry)).collect(),
    }
}

fn result<'a>(shown: &'a Shown, entry: &'a ComparisonRow) -> ResultShape<'a> {
    ResultShape {
        instance_type: shown.name(entry.subject),
        samples: entry.result.samples.iter().map(|sample| sample.figure).collect(),
        cpu_shares: entry.result.samples.iter().map(|sample| sample.observed.cpu_share).collect(),
        not_measured: entry.result.not_measured.as_deref(),
        summary: entry.summary.as_ref().map(|(summary, bound)| SummaryShape {
            min: summary.min,
            median: summary.median,
            p95: summary.p95,
            interval: summary.interval.map(|Interval { low, high }| IntervalShape { low, high }),
            difference: entry.standing.map(|standing| difference(standing.difference)),
            slower_by_percent: entry.standing.map(|standing| percent(standing.slowdown)),
            slower_by_at_most_percent: entry.standing.and_then(|standing| standing.largest_slowdown).map(percent),
            limit_of: match bound.by {
                By::Type => "type",
                By::Host => "host",
            },
            limit: &bound.limit,
            limit_detail: bound.detail.as_deref(),
        }),
    }
}

fn difference(difference: Difference) -> &'static str {
    match difference {
        Difference::Fastest => "fastest",
        Difference::Slower => "slower",
        Difference::NotFound => "not-found",
        Difference::TooFewRuns => "too-few-runs",
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::tests::{report, shown};
    use super::*;
    use serde_json::json;

    #[test]
    fn json_has_figures_of_all_runs() {
        let report = report();
        let value = serde_json::to_value(shape(&shown(&report))).expect("plain data");
        let bench = &value["Bench"];
        let micro = &bench["Measures"][0]["Results"][0];
        assert_eq!(micro["Samples"], json!([100.0, 90.0, 110.0, 95.0, 105.0]));
        assert_eq!(micro["Interval"], json!({"Low": 90.0, "High": 110.0}));
        assert_eq!(micro["Difference"], "slower");
        assert_eq!(bench["Measures"][1]["Results"][0]["Interval"], json!(null));
        assert_eq!((&micro["Median"], &micro["SlowerByPercent"]), (&json!(100.0), &json!(100.0)));
        assert_eq!(bench["Measures"][1]["Results"][1]["NotMeasured"], "exit code 3: <no> & \"such\" file");
        assert_eq!(
            (&bench["Choice"]["InstanceType"], &bench["Choice"]["OrderedBy"]),
            (&json!("t3.micro"), &json!("price"))
        );
        assert_eq!(bench["Choice"]["UncertainMeasures"][0]["Name"], "command");
        assert_eq!((&bench["Runs"], &bench["StoppedBy"]), (&json!(5), &json!("time")));
        assert_eq!(bench["InstanceTypes"][0]["PinnedCpus"], json!([0, 1]));
        assert_eq!(bench["InstanceTypes"][2]["Failed"], "no room");
    }
}
