//! `wisp recommend`: recommends instance types.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::output::{self, Align, Cell, Output, Screen, Tone};
use super::{args, open_cloud};
use cloud::utc;
use ec2::api::Timestamp;
use ec2::prices::{LIST_DATE, LIST_REGION, PriceList};
use ec2::right_size::{Confidence, Figures, Finding, Judgment, Statistic, TooLittle};
use ec2::size::approximate_mib;
use ec2::state::InstanceState;
use ec2::{InstanceId, InstanceType, catalog};
use node::shell;
use store::InstanceRecord;

/// Recommend instance types from recorded usage.
///
/// Instances are rated under-provisioned, over-provisioned or optimized by their usage in the last 14 days.
/// Recommendations use the 99th percentile plus 20% headroom. Memory usage is the memory that the host
/// holds for the guest, including the guest's page cache, so it is an upper bound. Prices are dollars a month
/// (730 hours) by AWS's on-demand prices for Linux in us-east-1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp recommend                            all instances
  wisp recommend web                        one instance, with its figures
  wisp recommend web --least 30             even after only 30 seconds of usage
  wisp recommend --output json              in the format of Compute Optimizer's API")]
pub struct Args {
    #[arg(value_name = "INSTANCE", help = args::INSTANCES)]
    instances: Vec<String>,

    /// Minimum observation time in seconds, excluding boots.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    least: u32,
}

type Verdict = Result<Judgment, TooLittle>;

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let is_named = !args.instances.is_empty();
    let mut records = if is_named { cloud.instances().find_all(&args.instances)? } else { cloud.instances().list()? };
    // Terminated instances have no recorded usage: it is deleted when they are terminated.
    records.retain(|record| is_named || record.status.state != InstanceState::Terminated);
    let mut verdicts = Vec::with_capacity(records.len());
    for record in &records {
        verdicts.push(cloud.metering().right_size(record, args.least.into())?);
    }
    let all: Vec<(&InstanceRecord, Verdict)> = records.iter().zip(verdicts).collect();
    if output == Output::Json {
        output::print_json(&response(&all, args.least))?;
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        output::say("No instances.");
        output::next("launch --name first");
        return Ok(ExitCode::SUCCESS);
    }
    let screen = Screen::stdout();
    if is_named {
        let blocks = all.iter().map(|(record, verdict)| block(record, verdict, args.least, screen).join("\n"));
        output::print(&blocks.collect::<Vec<_>>().join("\n\n"))?;
    } else {
        print_table(&all)?;
        output::say(&format!("Prices: on-demand Linux in {LIST_REGION}, {LIST_DATE}."));
    }
    suggest_next(&all);
    Ok(ExitCode::SUCCESS)
}

fn called(record: &InstanceRecord) -> String {
    record.meta.name().map_or_else(|| record.meta.id.to_string(), str::to_string)
}

fn suggest_next(all: &[(&InstanceRecord, Verdict)]) {
    let option = |verdict: &Verdict| verdict.as_ref().ok().and_then(|judgment| judgment.options.first().copied());
    if let Some((record, option)) = all.iter().find_map(|(record, verdict)| Some((record, option(verdict)?))) {
        let name = shell::command([called(record)]);
        output::next(&format!("stop {name}; wisp modify {name} --type {}; wisp start {name}", option.name));
    } else if let [(record, _)] = all {
        output::next_command(["top", &called(record), "--history"]);
    }
}

fn too_little(TooLittle { observed }: TooLittle, least: u32) -> String {
    format!(
        "not enough data: observed for {} with this size, excluding boots; the minimum is {} (see --least)",
        time(observed),
        time(least.into())
    )
}

fn time(seconds: f64) -> String {
    output::duration(Duration::from_secs_f64(seconds.max(0.0)))
}

fn tone(finding: Finding) -> Tone {
    match finding {
        Finding::Underprovisioned => Tone::Bad,
        Finding::Overprovisioned => Tone::Warning,
        Finding::Optimized => Tone::Good,
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// Formats the values of a statistic as percentages of `all`.
fn shares(statistic: &Statistic, all: f64) -> String {
    let [average, p99, maximum] =
        [statistic.average, statistic.p99, statistic.maximum].map(|value| percent(value / all));
    format!("average {average}, p99 {p99}, maximum {maximum}")
}

fn rates(statistic: &Statistic, unit: impl Fn(u64) -> String) -> String {
    let Statistic { average, p99, maximum } = *statistic;
    let [average, p99, maximum] = [average, p99, maximum].map(|value| unit(value.round() as u64));
    format!("average {average}, p99 {p99}, maximum {maximum}")
}

fn per_second(bytes: u64) -> String {
    format!("{}/s", output::bytes(bytes))
}

/// Formats the full recommendation for one instance.
fn block(record: &InstanceRecord, verdict: &Verdict, least: u32, screen: Screen) -> Vec<String> {
    let line = |label: &str, text: &str| format!("{} {text}", screen.paint(Tone::Quiet, &format!("{label:<16}")));
    let name = screen.paint(Tone::Strong, record.meta.name().unwrap_or(""));
    let size = format!(
        "{}, {}",
        output::count(record.spec.size.vcpus as usize, "vCPU"),
        approximate_mib(record.spec.size.memory_mib)
    );
    let mut lines = vec![
        line("Instance", &format!("{}  {name}", record.meta.id)),
        line("Type", &format!("{}: {size}{}", record.spec.size.instance_type, cost(&record.spec.size.instance_type))),
    ];
    let judgment = match verdict {
        Ok(judgment) => judgment,
        Err(error) => {
            lines.push(line("Finding", &screen.paint(Tone::Warning, &too_little(*error, least))));
            return lines;
        }
    };
    let Judgment { finding, reasons, options, confidence, figures } = judgment;
    let reasons: Vec<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    lines.push(line("Finding", &format!("{}{why}", screen.paint(tone(*finding), finding.title()))));
    lines.push(line("Observed", &observed(figures, *confidence)));
    lines.extend(figure_lines(record, figures).iter().map(|(label, text)| line(label, text)));
    for (index, option) in options.iter().enumerate() {
        lines.push(line(if index == 0 { "Recommended" } else { "Alternative" }, &option_text(option, figures)));
    }
    if options.is_empty() && *finding == Finding::Underprovisioned {
        lines.push(line("Recommended", "none: no type that this host can run has enough headroom (20%)"));
    }
    lines
}

fn observed(figures: &Figures, confidence: Confidence) -> String {
    let how_sure = match confidence {
        Confidence::Low => "low (less than 1 hour)",
        Confidence::Medium => "medium (less than 30 hours)",
        Confidence::High => "high",
    };
    format!("{} since {}; confidence: {how_sure}", time(figures.observed), utc(figures.since_ms / 1000))
}

fn figure_lines(record: &InstanceRecord, figures: &Figures) -> Vec<(&'static str, String)> {
    let known = catalog::find(&record.spec.size.instance_type).ok().filter(|_| !record.spec.no_limits);
    let vcpus = f64::from(record.spec.size.vcpus);
    let baseline = known.and_then(|known| known.credits).map(|credits| credits.baseline_percent);
    let baseline = baseline.map(|baseline| format!("; baseline {baseline}%")).unwrap_or_default();
    let mut lines = vec![("CPU", format!("{}{baseline}", shares(&figures.cpu, vcpus)))];
    if figures.cpu_throttled > 0.0 {
        let throttled = percent(figures.cpu_throttled);
        let wanted = shares(&figures.cpu_wanted, vcpus);
        lines.push(("", format!("throttled {throttled} of the time because credits ran out; demand: {wanted}")));
    }
    let memory_bytes = record.spec.size.memory_mib << 20;
    let held = percent(figures.touched_bytes as f64 / memory_bytes.max(1) as f64);
    lines.push(("Memory", format!("{} held, including the page cache: {held}", output::bytes(figures.touched_bytes))));
    let ebs = known.and_then(InstanceType::ebs_performance);
    let of = |limit: Option<String>| limit.map(|limit| format!("; baseline {limit}")).unwrap_or_default();
    let limit = of(ebs.map(|ebs| per_second(ebs.bytes.baseline)));
    lines.push(("Volumes", format!("{}{limit}", rates(&figures.ebs_bytes, per_second))));
    let limit = of(ebs.map(|ebs| format!("{} IOPS", ebs.operations.baseline)));
    lines.push(("", format!("{}{limit}", rates(&figures.ebs_operations, |count| format!("{count} IOPS")))));
    if figures.ebs_throttled > 0.0 {
        let throttled = percent(figures.ebs_throttled);
        lines.push(("", format!("throttled {throttled} of the time by limits of the type or the volumes (added up)")));
    }
    let limit = of(known.map(|known| per_second(known.network_speed().baseline)));
    lines.push(("Network", format!("{}{limit}", rates(&figures.network, per_second))));
    if figures.network_throttled > 0.0 {
        lines.push(("", format!("throttled {} of the time", percent(figures.network_throttled))));
    }
    lines
}

fn option_text(option: &InstanceType, figures: &Figures) -> String {
    format!(
        "{}: {}, {}{}; projected CPU: {}",
        option.name,
        output::count(option.vcpus as usize, "vCPU"),
        approximate_mib(option.memory_mib),
        cost(option.name),
        shares(&figures.cpu_wanted, option.vcpus.into()),
    )
}

/// Formats the price of a type after its size.
fn cost(instance_type: &str) -> String {
    PriceList::embedded().monthly(instance_type).map(|dollars| format!("; ${dollars:.2} a month")).unwrap_or_default()
}

/// Formats the price of a type as a cell of a table.
fn monthly(instance_type: &str) -> Cell {
    Cell::from(PriceList::embedded().monthly(instance_type).map_or("-".into(), |dollars| format!("{dollars:.2}")))
}

fn print_table(all: &[(&InstanceRecord, Verdict)]) -> anyhow::Result<()> {
    let columns = [
        ("Name", Align::Left),
        ("Instance", Align::Left),
        ("Type", Align::Left),
        ("$/month", Align::Right),
        ("Finding", Align::Left),
        ("CPU", Align::Right),
        ("p99", Align::Right),
        ("Held", Align::Right),
        ("Observed", Align::Right),
        ("Recommended", Align::Left),
        ("$/month", Align::Right),
    ];
    let rows = all.iter().map(|(record, verdict)| {
        let mut row = vec![
            Cell::new(record.meta.name().unwrap_or("-"), Tone::Strong),
            Cell::from(record.meta.id.to_string()),
            Cell::from(record.spec.size.instance_type.clone()),
            monthly(&record.spec.size.instance_type),
        ];
        row.extend(match verdict {
            Ok(Judgment { finding, options, figures, .. }) => {
                let vcpus = f64::from(record.spec.size.vcpus);
                [
                    Cell::new(finding.title(), tone(*finding)),
                    Cell::from(percent(figures.cpu.average / vcpus)),
                    Cell::from(percent(figures.cpu.p99 / vcpus)),
                    Cell::from(output::bytes(figures.touched_bytes)),
                    Cell::from(time(figures.observed)),
                    Cell::from(options.first().map_or("-", |option| option.name)),
                    options.first().map_or("-".into(), |option| monthly(option.name)),
                ]
            }
            Err(TooLittle { observed }) => {
                let finding = Cell::new("not enough data", Tone::Quiet);
                [finding, "-".into(), "-".into(), "-".into(), Cell::from(time(*observed)), "-".into(), "-".into()]
            }
        });
        row
    });
    Ok(output::print_table(&columns, rows)?)
}

/// The response of Compute Optimizer's `GetEC2InstanceRecommendations`, with the observed time, memory and throttled
/// shares as additions.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    instance_recommendations: Vec<InstanceRecommendation<'a>>,
    errors: Vec<GetRecommendationError>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GetRecommendationError {
    identifier: InstanceId,
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceRecommendation<'a> {
    instance_id: InstanceId,
    instance_name: Option<&'a str>,
    current_instance_type: &'a str,
    finding: &'static str,
    finding_reason_codes: Vec<&'static str>,
    confidence: &'static str,
    observed_seconds: f64,
    observed_since: Timestamp,
    look_back_period_in_days: u32,
    utilization_metrics: Vec<UtilizationMetric>,
    touched_memory_bytes: u64,
    throttled_shares: ThrottledShares,
    recommendation_options: Vec<RecommendationOption>,
}

#[derive(Serialize)]
struct UtilizationMetric {
    name: &'static str,
    statistic: &'static str,
    value: f64,
}

/// Shares of the observed time.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ThrottledShares {
    cpu: f64,
    ebs: f64,
    network: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecommendationOption {
    rank: usize,
    instance_type: &'static str,
    #[serde(rename = "vCpus")]
    vcpus: u32,
    #[serde(rename = "memoryMiB")]
    memory_mib: u64,
    projected_utilization_metrics: [UtilizationMetric; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    savings_opportunity: Option<SavingsOpportunity>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SavingsOpportunity {
    savings_opportunity_percentage: f64,
    estimated_monthly_savings: EstimatedMonthlySavings,
}

#[derive(Serialize)]
struct EstimatedMonthlySavings {
    currency: &'static str,
    value: f64,
}

/// Returns what a change from one type to another saves. Returns `None` if it saves nothing, or if a price is unknown.
fn savings(from: &str, to: &str) -> Option<SavingsOpportunity> {
    let [from, to] = [from, to].map(|name| PriceList::embedded().monthly(name));
    let from = from?;
    let value = from - to?;
    (value > 0.0).then(|| SavingsOpportunity {
        savings_opportunity_percentage: value * 100.0 / from,
        estimated_monthly_savings: EstimatedMonthlySavings { currency: "USD", value },
    })
}

fn response<'a>(all: &'a [(&'a InstanceRecord, Verdict)], least: u32) -> Response<'a> {
    let judged = all.iter().filter_map(|(record, verdict)| Some(recommendation(record, verdict.as_ref().ok()?)));
    let errors = all.iter().filter_map(|(record, verdict)| {
        let message = too_little(*verdict.as_ref().err()?, least);
        Some(GetRecommendationError { identifier: record.meta.id, code: "InsufficientData", message })
    });
    Response { instance_recommendations: judged.collect(), errors: errors.collect() }
}

fn recommendation<'a>(record: &'a InstanceRecord, judgment: &Judgment) -> InstanceRecommendation<'a> {
    let Judgment { finding, reasons, options, confidence, figures } = judgment;
    InstanceRecommendation {
        instance_id: record.meta.id,
        instance_name: record.meta.name(),
        current_instance_type: &record.spec.size.instance_type,
        finding: finding.as_str(),
        finding_reason_codes: reasons.iter().map(|reason| reason.as_str()).collect(),
        confidence: confidence.as_str(),
        observed_seconds: figures.observed,
        observed_since: Timestamp::from_seconds(figures.since_ms / 1000),
        look_back_period_in_days: 14,
        utilization_metrics: utilization(record, figures),
        touched_memory_bytes: figures.touched_bytes,
        throttled_shares: ThrottledShares {
            cpu: figures.cpu_throttled,
            ebs: figures.ebs_throttled,
            network: figures.network_throttled,
        },
        recommendation_options: (1..)
            .zip(options)
            .map(|(rank, option)| option_shape(rank, option, record, figures))
            .collect(),
    }
}

fn utilization(record: &InstanceRecord, figures: &Figures) -> Vec<UtilizationMetric> {
    let vcpus = f64::from(record.spec.size.vcpus);
    let metrics = [
        ("Cpu", figures.cpu, 100.0 / vcpus),
        ("CpuWanted", figures.cpu_wanted, 100.0 / vcpus),
        ("EbsBytesPerSecond", figures.ebs_bytes, 1.0),
        ("EbsOperationsPerSecond", figures.ebs_operations, 1.0),
        ("NetworkBytesPerSecond", figures.network, 1.0),
    ];
    let touched = figures.touched_bytes as f64 * 100.0 / (record.spec.size.memory_mib << 20).max(1) as f64;
    let metrics = metrics.into_iter().flat_map(|(name, Statistic { average, p99, maximum }, scale)| {
        [("Average", average), ("P99", p99), ("Maximum", maximum)].map(|(statistic, value)| UtilizationMetric {
            name,
            statistic,
            value: value * scale,
        })
    });
    metrics.chain([UtilizationMetric { name: "Memory", statistic: "Maximum", value: touched }]).collect()
}

fn option_shape(
    rank: usize,
    option: &InstanceType,
    record: &InstanceRecord,
    figures: &Figures,
) -> RecommendationOption {
    let cpu = figures.cpu_wanted.p99 * 100.0 / f64::from(option.vcpus);
    RecommendationOption {
        rank,
        instance_type: option.name,
        vcpus: option.vcpus,
        memory_mib: option.memory_mib,
        projected_utilization_metrics: [UtilizationMetric { name: "Cpu", statistic: "P99", value: cpu }],
        savings_opportunity: savings(&record.spec.size.instance_type, option.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn savings_are_difference_of_monthly_prices() {
        let saved = savings("t3.large", "t3.medium").unwrap();
        assert!((saved.savings_opportunity_percentage - 50.0).abs() < 1e-9);
        assert!((saved.estimated_monthly_savings.value - 0.0416 * 730.0).abs() < 1e-9);
        assert!(savings("t3.medium", "t3.large").is_none());
        assert!(savings("t3.medium", "t9.large").is_none());
    }

    #[test]
    fn cost_follows_size() {
        assert_eq!(cost("t3.micro"), "; $7.59 a month");
        assert_eq!(cost("t9.micro"), "");
    }
}
