//! `wisp top`: live usage of running instances.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::limits::LimitsShape;
use super::output::{self, Align, Cell, Output, Screen, Table, Tone};
use super::{history, limits, open_cloud};
use cloud::Cloud;
use ec2::InstanceId;
use ec2::state::InstanceState;
use machine::control::{ControlRequest, VmmStatus};
use node::instance::MachineHandle;
use store::InstanceRecord;

/// Show live usage of running instances.
///
/// The columns include CPU, CPU credits, throttled time, memory, disk traffic and VM exits per second. Used is the
/// memory that the guest's programs and kernel occupy. Held is the memory that the host has allocated for the guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp top                             until Enter or Ctrl-C
  wisp top --once --output json        one sample, for scripts
  wisp top web --history               usage in the last three hours
  wisp top web --history=336           usage in the last 14 days (the maximum)")]
pub struct Args {
    /// Show only this instance (ID, unique ID prefix or name).
    #[arg(value_name = "INSTANCE")]
    instance: Option<String>,

    /// Show usage for the last HOURS hours [default: 3].
    #[arg(long, value_name = "HOURS", requires = "instance", num_args = 0..=1, require_equals = true,
        default_missing_value = "3", value_parser = clap::value_parser!(u32).range(1..=336))]
    history: Option<u32>,

    /// Print one sample and exit.
    #[arg(long)]
    once: bool,

    /// Seconds between updates.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// A sample of a machine's counters.
struct Sample {
    at: Instant,
    status: VmmStatus,
}

/// The rates between two samples, per second.
#[derive(Debug, Clone, PartialEq)]
struct Rates {
    cpu_percent: f64,
    read_bytes: f64,
    written_bytes: f64,
    exits: f64,
    throttled_percent: f64,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let interval = Duration::from_secs(args.interval);
    let once = args.once || output == Output::Json || Screen::stdout() == Screen::PLAIN;
    let cloud = open_cloud()?;
    let only = args.instance.as_deref().map(|instance| cloud.instances().find(instance)).transpose()?;
    if let (Some(record), Some(hours)) = (&only, args.history) {
        history::print(&cloud, record, hours, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let only = only.map(|record| record.meta.id);
    let mut before = look(&cloud, only)?.1;
    loop {
        let stopped = wait(interval, once);
        let (records, now) = look(&cloud, only)?;
        let rows: Vec<(&InstanceRecord, &VmmStatus, Rates)> = records
            .iter()
            .filter_map(|record| {
                let sample = now.get(&record.meta.id)?;
                let rates = rates(before.get(&record.meta.id)?, sample);
                Some((record, &sample.status, rates))
            })
            .collect();
        if output == Output::Json {
            output::print_json(&output::member("Instances", rows.iter().map(shape).collect::<Vec<_>>()))?;
        } else {
            if !once {
                output::clear_screen()?;
            }
            output::print(&render(&rows, Screen::stdout()))?;
        }
        if once || stopped {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// Waits for the interval. Unless `once`, returns true early if the user presses Enter.
fn wait(interval: Duration, once: bool) -> bool {
    let timeout = Timespec { tv_sec: interval.as_secs() as i64, tv_nsec: 0 };
    let stdin = rustix::stdio::stdin();
    let mut watched = [PollFd::new(&stdin, PollFlags::IN)];
    let watched = if once { &mut watched[..0] } else { &mut watched[..] };
    poll(watched, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

type Look = (Vec<InstanceRecord>, HashMap<InstanceId, Sample>);

fn look(cloud: &Cloud, only: Option<InstanceId>) -> anyhow::Result<Look> {
    let mut records = cloud.instances().list()?;
    records
        .retain(|record| record.status.state == InstanceState::Running && only.is_none_or(|id| id == record.meta.id));
    let mut samples = HashMap::new();
    for record in &records {
        // Skip an instance whose VMM does not respond, for example because it has just exited.
        let Ok(mut machine) = MachineHandle::connect(&cloud.dir(record.meta.id)) else { continue };
        let Ok(status) = machine.status() else { continue };
        samples.insert(record.meta.id, Sample { at: Instant::now(), status });
        // The next sample has the answer. A VMM that an earlier version started does not know the request.
        let _ = machine.demand(&ControlRequest::RefreshGuestMemory);
    }
    Ok((records, samples))
}

fn rates(before: &Sample, after: &Sample) -> Rates {
    let seconds = (after.at - before.at).as_secs_f64().max(0.001);
    // After a reboot, the counters of the new VMM start at zero.
    let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
    let sum = |status: &VmmStatus, of: fn(&machine::control::DiskRecord) -> u64| status.disks.iter().map(of).sum();
    let exits = |status: &VmmStatus| status.exits.iter().map(|exit| exit.count).sum();
    let (old, new) = (&before.status, &after.status);
    Rates {
        cpu_percent: rate(old.cpu_time_ns, new.cpu_time_ns) / 1e7,
        read_bytes: rate(sum(old, |disk| disk.read_bytes), sum(new, |disk| disk.read_bytes)),
        written_bytes: rate(sum(old, |disk| disk.written_bytes), sum(new, |disk| disk.written_bytes)),
        exits: rate(exits(old), exits(new)),
        throttled_percent: rate(limits::throttled_ns(old), limits::throttled_ns(new)) / 1e7,
    }
}

/// An element of `Instances` in the output of `--output json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Usage<'a> {
    instance_id: InstanceId,
    name: Option<&'a str>,
    instance_type: &'a str,
    #[serde(rename = "VCpus")]
    vcpus: u32,
    cpu_percent: f64,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u64,
    resident_bytes: u64,
    /// Absent if the guest has no balloon driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_available_bytes: Option<u64>,
    vmm_bytes: u64,
    disk_read_bytes_per_second: f64,
    disk_write_bytes_per_second: f64,
    exits_per_second: f64,
    throttled_percent: f64,
    limits: LimitsShape<'a>,
}

fn shape<'a>((record, status, rates): &(&'a InstanceRecord, &'a VmmStatus, Rates)) -> Usage<'a> {
    Usage {
        instance_id: record.meta.id,
        name: record.meta.name(),
        instance_type: &record.spec.size.instance_type,
        vcpus: status.vcpus,
        cpu_percent: rates.cpu_percent,
        memory_mib: status.memory_mib,
        resident_bytes: status.guest_resident_bytes,
        guest_used_bytes: status.guest_memory.map(|memory| memory.used_bytes()),
        guest_available_bytes: status.guest_memory.map(|memory| memory.available_bytes),
        vmm_bytes: status.vmm_resident_bytes,
        disk_read_bytes_per_second: rates.read_bytes,
        disk_write_bytes_per_second: rates.written_bytes,
        exits_per_second: rates.exits,
        throttled_percent: rates.throttled_percent,
        limits: limits::shape(record, Some(status)),
    }
}

fn render(rows: &[(&InstanceRecord, &VmmStatus, Rates)], screen: Screen) -> String {
    if rows.is_empty() {
        return "No instances are running.".into();
    }
    let columns = [
        ("Name", Align::Left),
        ("Instance", Align::Left),
        ("vCPUs", Align::Right),
        ("CPU", Align::Right),
        ("Credits", Align::Right),
        ("Throttled", Align::Right),
        ("Memory", Align::Right),
        ("Used", Align::Right),
        ("Held", Align::Right),
        ("Read/s", Align::Right),
        ("Written/s", Align::Right),
        ("Exits/s", Align::Right),
    ];
    let mut table = Table::new(screen, &columns);
    for (record, status, rates) in rows {
        let tone = if rates.cpu_percent > 90.0 * f64::from(status.vcpus) { Tone::Warning } else { Tone::Plain };
        table.row(vec![
            Cell::new(record.meta.name().unwrap_or("-"), Tone::Strong),
            Cell::from(record.meta.id.to_string()),
            Cell::from(status.vcpus.to_string()),
            Cell::new(format!("{:.0}%", rates.cpu_percent), tone),
            Cell::from(limits::credit_cell(status)),
            Cell::from(format!("{:.0}%", rates.throttled_percent)),
            Cell::from(output::bytes(status.memory_mib << 20)),
            Cell::from(status.guest_memory.map_or("-".into(), |memory| output::bytes(memory.used_bytes()))),
            Cell::from(output::bytes(status.guest_resident_bytes)),
            Cell::from(output::bytes(rates.read_bytes as u64)),
            Cell::from(output::bytes(rates.written_bytes as u64)),
            Cell::from(format!("{:.0}", rates.exits)),
        ]);
    }
    table.lines().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let at = Instant::now();
        let sample = |seconds, cpu_time_ns| Sample {
            at: at + Duration::from_secs(seconds),
            status: VmmStatus { cpu_time_ns, ..VmmStatus::default() },
        };
        assert_eq!(rates(&sample(0, 0), &sample(2, 1_000_000_000)).cpu_percent, 50.0);
        assert_eq!(rates(&sample(0, 5), &sample(2, 0)).cpu_percent, 0.0);
    }
}
