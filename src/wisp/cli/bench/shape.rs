//! Formats a bench as JSON: all figures of all runs, and the conclusions.

use serde_json::{Value, json};

use super::Shown;
use cloud::bench::TypeReport;
use cloud::bench::bound::By;
use cloud::bench::comparison::{Compared, ComparisonRow};
use cloud::bench::measure::Better;
use machine::limits::{DiskLimits, Rate};

/// Returns the results of the bench as JSON.
pub fn shape(shown: &Shown) -> Value {
    let host = &shown.report.host;
    let comparison = &shown.comparison;
    json!({"Bench": {
        "WispVersion": env!("CARGO_PKG_VERSION"),
        "CommandLine": shown.command_line,
        "StartTime": shown.began,
        "ImageName": shown.image,
        "Runs": shown.runs,
        "Limited": shown.limited,
        "Host": {
            "Cpu": host.cpu,
            "Cpus": host.cpus,
            "Kvm": if host.software_kvm { "software" } else { "hardware" },
            "LastCacheBytes": host.cache,
        },
        "InstanceTypes": shown.report.types.iter().zip(&shown.prices).map(of_type).collect::<Vec<_>>(),
        "Measures": comparison.measures.iter().map(|compared| measure(shown, compared)).collect::<Vec<_>>(),
        "Choice": {
            "WithinPercent": shown.within,
            "OrderedBy": if comparison.has_prices { "price" } else { "size" },
            "Measures": comparison.over,
            "InstanceType": comparison.cheapest.map(|subject| shown.name(subject)),
        },
    }})
}

fn of_type((of, price): (&TypeReport, &Option<f64>)) -> Value {
    let rate = |rate: &Rate| json!({"Baseline": rate.baseline, "Peak": rate.peak});
    let disk = |limits: &DiskLimits| {
        json!({
            "BytesPerSecond": limits.bytes.as_ref().map(rate),
            "Iops": limits.operations.as_ref().map(rate),
        })
    };
    json!({
        "InstanceType": of.request.instance_type.name,
        "VCpus": of.request.vcpus,
        "MemoryMiB": of.request.memory_mib,
        "Price": price,
        "Failed": of.failed,
        "Limits": {
            "BaselinePercent": of.request.instance_type.credits.map(|credits| credits.baseline_percent),
            "CpuCredits": of.limits.credits.map(|mode| mode.as_str()),
            "RootVolume": of.limits.volume.as_ref().map(disk),
            "Ebs": of.limits.path.as_ref().map(disk),
            "NetworkBytesPerSecond": of.limits.network.as_ref().map(rate),
        },
    })
}

fn measure(shown: &Shown, Compared { measure, entries, cheapest }: &Compared) -> Value {
    json!({
        "Name": measure.name,
        "Title": measure.title,
        "Unit": measure.unit,
        "Better": match measure.better { Better::Higher => "higher", Better::Lower => "lower" },
        "CheapestWithin": cheapest.map(|subject| shown.name(subject)),
        "Results": entries.iter().map(|entry| result(shown, entry)).collect::<Vec<_>>(),
    })
}

fn result(shown: &Shown, entry: &ComparisonRow) -> Value {
    let mut value = json!({
        "InstanceType": shown.name(entry.subject),
        "Samples": entry.result.samples.iter().map(|sample| sample.figure).collect::<Vec<_>>(),
        "CpuShares": entry.result.samples.iter().map(|sample| sample.observed.cpu_share).collect::<Vec<_>>(),
        "NotMeasured": entry.result.not_measured,
    });
    if let Some((summary, bound)) = &entry.summary {
        value["Min"] = json!(summary.min);
        value["Median"] = json!(summary.median);
        value["P95"] = json!(summary.p95);
        value["SlowerByPercent"] = json!(entry.slowdown.map(|slowdown| slowdown * 100.0));
        value["LimitOf"] = json!(match bound.by {
            By::Type => "type",
            By::Host => "host",
        });
        value["Limit"] = json!(bound.why);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::super::tests::{report, shown};
    use super::*;

    #[test]
    fn json_has_figures_of_all_runs() {
        let report = report();
        let bench = &shape(&shown(&report))["Bench"];
        let micro = &bench["Measures"][0]["Results"][0];
        assert_eq!(micro["Samples"], json!([100.0, 90.0, 110.0]));
        assert_eq!((&micro["Median"], &micro["SlowerByPercent"]), (&json!(100.0), &json!(100.0)));
        assert_eq!(bench["Measures"][1]["Results"][1]["NotMeasured"], "exit code 3: <no> & \"such\" file");
        assert_eq!(
            (&bench["Choice"]["InstanceType"], &bench["Choice"]["OrderedBy"]),
            (&json!("t3.micro"), &json!("size"))
        );
        assert_eq!(bench["InstanceTypes"][2]["Failed"], "no room");
    }
}
