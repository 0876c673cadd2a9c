//! `wisp top --history`: shows usage over time, with CloudWatch's metrics.

use std::time::Duration;

use serde_json::{Value, json};

use super::output::{self, Align, Cell, Output, Tone};
use cloud::{Cloud, timestamp, utc};
use ec2::credits::in_credits;
use ec2::usage::Datapoint;
use store::InstanceRecord;

/// Prints the datapoints of the last `hours` hours before an instance's newest datapoint.
pub fn print(cloud: &Cloud, record: &InstanceRecord, hours: u32, output: Output) -> anyhow::Result<()> {
    let mut points = cloud.metering().usage(record)?;
    let newest = points.last().map_or(0, |point| point.end_ms);
    points.retain(|point| point.end_ms.saturating_add(u64::from(hours) * 3_600_000) >= newest);
    if output == Output::Json {
        let datapoints: Vec<Value> = points.iter().map(shape).collect();
        return output::print_json(&json!({"InstanceId": record.id, "Name": record.name(), "Datapoints": datapoints}));
    }
    if points.is_empty() {
        output::say(&format!("No usage has been recorded for {} yet.", record.id));
        return Ok(());
    }
    let columns = [
        ("End", Align::Left),
        ("Period", Align::Right),
        ("CPU", Align::Right),
        ("Credits", Align::Right),
        ("Touched", Align::Right),
        ("Read", Align::Right),
        ("Written", Align::Right),
        ("Net in", Align::Right),
        ("Net out", Align::Right),
        ("", Align::Left),
    ];
    Ok(output::print_table(&columns, points.iter().map(row))?)
}

fn row(point: &Datapoint) -> Vec<Cell> {
    let credits = point.credits.map(|credits| credits.credits() - in_credits(credits.surplus_ns));
    let mut disks = point.ebs;
    disks.add(&point.instance_store);
    vec![
        Cell::from(utc(point.end_ms / 1000)),
        Cell::from(output::duration(Duration::from_millis(point.period_ms))),
        Cell::new(format!("{:.1}%", point.cpu_percent()), Tone::Strong),
        Cell::from(credits.map_or("-".into(), |credits| format!("{credits:.1}"))),
        Cell::from(output::bytes(point.touched_bytes)),
        Cell::from(output::bytes(disks.read_bytes)),
        Cell::from(output::bytes(disks.written_bytes)),
        Cell::from(output::bytes(point.network.received_bytes)),
        Cell::from(output::bytes(point.network.sent_bytes)),
        Cell::new(if point.booting { "boot" } else { "" }, Tone::Quiet),
    ]
}

/// Formats a datapoint, with CloudWatch's names where they exist. Values are sums over the period, except percentages,
/// memory and balances.
fn shape(point: &Datapoint) -> Value {
    let Datapoint { ebs, instance_store, network, .. } = point;
    let memory_bytes = (point.memory_mib << 20).max(1) as f64;
    let mut value = json!({
        "Timestamp": timestamp(point.start_ms() / 1000),
        "Period": point.seconds(),
        "Booting": point.booting,
        "InstanceType": point.instance_type,
        "VCpus": point.vcpus,
        "CPUUtilization": point.cpu_percent(),
        "CpuThrottledSeconds": point.cpu_held_ns as f64 / 1e9,
        "MemoryTouchedBytes": point.touched_bytes,
        "MemoryTouchedPercent": point.touched_bytes as f64 * 100.0 / memory_bytes,
        "EBSReadBytes": ebs.read_bytes,
        "EBSWriteBytes": ebs.written_bytes,
        "EBSReadOps": ebs.reads,
        "EBSWriteOps": ebs.writes,
        "EbsHeldSeconds": ebs.throttled_ns as f64 / 1e9,
        "DiskReadBytes": instance_store.read_bytes,
        "DiskWriteBytes": instance_store.written_bytes,
        "DiskReadOps": instance_store.reads,
        "DiskWriteOps": instance_store.writes,
        "NetworkIn": network.received_bytes,
        "NetworkOut": network.sent_bytes,
        "NetworkPacketsIn": network.received_packets,
        "NetworkPacketsOut": network.sent_packets,
        "NetworkHeldSeconds": network.throttled_ns as f64 / 1e9,
    });
    if let Some(credits) = point.credits {
        value["CPUCreditUsage"] = json!(in_credits(point.cpu_ns));
        value["CPUCreditBalance"] = json!(credits.credits());
        value["CPUSurplusCreditBalance"] = json!(in_credits(credits.surplus_ns));
        value["CPUSurplusCreditsCharged"] = json!(in_credits(credits.charged_ns));
    }
    value
}
