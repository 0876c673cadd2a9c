//! `wisp top --history`: shows usage over time, with CloudWatch's metrics.

use std::time::Duration;

use serde::Serialize;

use super::limits::{CreditMetrics, in_seconds};
use super::output::{self, Align, Cell, Output, Tone};
use cloud::{Cloud, utc};
use ec2::InstanceId;
use ec2::api::Timestamp;
use ec2::credits::in_credits;
use ec2::usage::Datapoint;
use store::InstanceRecord;

/// Prints the datapoints of the last `hours` hours before an instance's newest datapoint.
pub fn print(cloud: &Cloud, record: &InstanceRecord, hours: u32, output: Output) -> anyhow::Result<()> {
    let mut points = cloud.metering().usage(record)?;
    let newest = points.last().map_or(0, |point| point.end_ms);
    points.retain(|point| point.end_ms.saturating_add(u64::from(hours) * 3_600_000) >= newest);
    if output == Output::Json {
        let datapoints = points.iter().map(shape).collect();
        return output::print_json(&History { instance_id: record.meta.id, name: record.meta.name(), datapoints });
    }
    if points.is_empty() {
        output::say(&format!("No usage has been recorded for {} yet.", record.meta.id));
        return Ok(());
    }
    let columns = [
        ("End", Align::Left),
        ("Period", Align::Right),
        ("CPU", Align::Right),
        ("Credits", Align::Right),
        ("Held", Align::Right),
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

/// The output of `--output json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct History<'a> {
    instance_id: InstanceId,
    name: Option<&'a str>,
    datapoints: Vec<DatapointShape<'a>>,
}

/// A datapoint, with CloudWatch's names where they exist. Values are sums over the period, except percentages, memory
/// and balances.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DatapointShape<'a> {
    timestamp: Timestamp,
    period: f64,
    booting: bool,
    instance_type: &'a str,
    #[serde(rename = "VCpus")]
    vcpus: u32,
    #[serde(rename = "CPUUtilization")]
    cpu_percent: f64,
    cpu_throttled_seconds: f64,
    memory_touched_bytes: u64,
    memory_touched_percent: f64,
    #[serde(flatten)]
    ebs: EbsMetrics,
    #[serde(flatten)]
    instance_store: InstanceStoreMetrics,
    #[serde(flatten)]
    network: NetworkMetrics,
    #[serde(rename = "CPUCreditUsage", skip_serializing_if = "Option::is_none")]
    credit_usage: Option<f64>,
    #[serde(flatten)]
    credits: Option<CreditMetrics>,
}

#[derive(Serialize)]
struct EbsMetrics {
    #[serde(rename = "EBSReadBytes")]
    read_bytes: u64,
    #[serde(rename = "EBSWriteBytes")]
    written_bytes: u64,
    #[serde(rename = "EBSReadOps")]
    reads: u64,
    #[serde(rename = "EBSWriteOps")]
    writes: u64,
    #[serde(rename = "EbsThrottledSeconds")]
    throttled_seconds: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceStoreMetrics {
    disk_read_bytes: u64,
    disk_write_bytes: u64,
    disk_read_ops: u64,
    disk_write_ops: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkMetrics {
    network_in: u64,
    network_out: u64,
    network_packets_in: u64,
    network_packets_out: u64,
    network_throttled_seconds: f64,
}

fn shape(point: &Datapoint) -> DatapointShape<'_> {
    let Datapoint { ebs, instance_store, network, .. } = point;
    let memory_bytes = (point.memory_mib << 20).max(1) as f64;
    DatapointShape {
        timestamp: Timestamp::from_seconds(point.start_ms() / 1000),
        period: point.seconds(),
        booting: point.booting,
        instance_type: &point.instance_type,
        vcpus: point.vcpus,
        cpu_percent: point.cpu_percent(),
        cpu_throttled_seconds: in_seconds(point.cpu_throttled_ns),
        memory_touched_bytes: point.touched_bytes,
        memory_touched_percent: point.touched_bytes as f64 * 100.0 / memory_bytes,
        ebs: EbsMetrics {
            read_bytes: ebs.read_bytes,
            written_bytes: ebs.written_bytes,
            reads: ebs.reads,
            writes: ebs.writes,
            throttled_seconds: in_seconds(ebs.throttled_ns),
        },
        instance_store: InstanceStoreMetrics {
            disk_read_bytes: instance_store.read_bytes,
            disk_write_bytes: instance_store.written_bytes,
            disk_read_ops: instance_store.reads,
            disk_write_ops: instance_store.writes,
        },
        network: NetworkMetrics {
            network_in: network.received_bytes,
            network_out: network.sent_bytes,
            network_packets_in: network.received_packets,
            network_packets_out: network.sent_packets,
            network_throttled_seconds: in_seconds(network.throttled_ns),
        },
        credit_usage: point.credits.map(|_| in_credits(point.cpu_ns)),
        credits: point.credits.as_ref().map(CreditMetrics::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::credits::CreditBalance;
    use ec2::usage::{DiskUse, NetworkUse};

    #[test]
    fn datapoint_has_cloudwatch_names_and_throttled_times() {
        let point = Datapoint {
            end_ms: 60_000,
            period_ms: 60_000,
            vcpus: 1,
            memory_mib: 1,
            touched_bytes: 1 << 19,
            cpu_throttled_ns: 500_000_000,
            ebs: DiskUse { throttled_ns: 1_500_000_000, ..DiskUse::default() },
            network: NetworkUse { throttled_ns: 2_500_000_000, ..NetworkUse::default() },
            ..Datapoint::default()
        };
        let value = serde_json::to_value(shape(&point)).unwrap();
        assert_eq!(
            (&value["Timestamp"], &value["MemoryTouchedPercent"]),
            (&"1970-01-01T00:00:00.000Z".into(), &50.0.into())
        );
        for (name, seconds) in
            [("CpuThrottledSeconds", 0.5), ("EbsThrottledSeconds", 1.5), ("NetworkThrottledSeconds", 2.5)]
        {
            assert_eq!(value[name], seconds, "{name}");
        }
        assert_eq!(value.get("CPUCreditUsage"), None);
        let burstable = Datapoint { credits: Some(CreditBalance::default()), ..point };
        let value = serde_json::to_value(shape(&burstable)).unwrap();
        assert_eq!((&value["CPUCreditUsage"], &value["CPUCreditBalance"]), (&0.0.into(), &0.0.into()));
    }
}
