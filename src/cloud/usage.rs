//! Usage of instances over time: converts the readings of their VMMs to datapoints in the store.
//!
//! The series is updated when it is queried and when the instance's end is recorded. The store keeps the last reading
//! as a cursor, so each reading enters the series only once. A datapoint is the difference between two readings.

use std::time::Duration;

use super::error::CloudError;
use super::lookup::get;
use super::{Cloud, now};
use ec2::credits::CreditBalance;
use ec2::right_size::{Judgment, Subject, TooLittle, judge};
use ec2::usage::{Datapoint, DiskUse, NetworkUse, settled};
use ec2::{InstanceId, catalog};
use machine::control::NetRecord;
use machine::usage::{BudgetReading, DiskReading, Reading};
use store::{InstanceRecord, Transaction, UsageCursor};

/// Timeout for a running instance's VMM to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Name prefix of volumes among a machine's disks. All other disks are instance-store disks.
const VOLUME: &str = "vol";

#[derive(Debug, Clone, Copy)]
pub struct Metering<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Metering<'_> {
    pub fn usage(&self, record: &InstanceRecord) -> Result<Vec<Datapoint>, CloudError> {
        let instances = self.cloud.node.instances();
        let mut readings = instances.readings(record.meta.id);
        if record.status.state.has_machine() {
            // If the VMM does not answer, use the last reading.
            let status = instances.status(record.meta.id, ANSWER_TIMEOUT);
            readings.extend(status.ok().map(|status| Reading::of(&status)));
        }
        self.keep_readings(record.meta.id, &readings)
    }

    /// Recommends a size for an instance, if its usage was observed for at least `least` seconds.
    pub fn right_size(&self, record: &InstanceRecord, least: f64) -> Result<Result<Judgment, TooLittle>, CloudError> {
        let subject = Subject {
            instance_type: catalog::find(&record.spec.size.instance_type)?,
            vcpus: record.spec.size.vcpus,
            memory_mib: record.spec.size.memory_mib,
            is_limited: !record.spec.no_limits,
            hibernation: record.spec.hibernation,
        };
        Ok(judge(&subject, &self.usage(record)?, least))
    }

    /// Saves the usage of an instance whose machine has ended. A failure is only logged: it must not block the caller.
    pub(super) fn keep(&self, id: InstanceId) {
        let readings = self.cloud.node.instances().readings(id);
        if let Err(error) = self.keep_readings(id, &readings) {
            log::warn!("{id}: cannot record its usage: {error}");
        }
    }

    fn keep_readings(&self, id: InstanceId, readings: &[Reading]) -> Result<Vec<Datapoint>, CloudError> {
        self.cloud.store.write(|tx| fold(tx, &get(tx, id)?, readings, now().saturating_mul(1000)))
    }
}

fn fold(
    tx: &Transaction,
    record: &InstanceRecord,
    readings: &[Reading],
    now_ms: u64,
) -> Result<Vec<Datapoint>, CloudError> {
    let id = record.meta.id;
    let before = tx.usage(id)?;
    // A cursor that cannot be parsed, because another version of Wisp wrote it, is treated as missing.
    let cursor = tx.get::<UsageCursor>(&id.to_string())?.and_then(|cursor| serde_json::from_value(cursor.reading).ok());
    let fresh = new_readings(cursor.as_ref(), readings);
    let mut points = before.clone();
    let next = before.last().map_or(1, |point| point.number + 1);
    for (number, (previous, reading)) in (next..).zip(fresh.pairs()) {
        let of_instance = Datapoint {
            number,
            instance_type: record.spec.size.instance_type.clone(),
            vcpus: record.spec.size.vcpus,
            memory_mib: record.spec.size.memory_mib,
            ..difference(previous, reading)
        };
        points.push(of_instance);
    }
    let after = settled(points, now_ms);
    tx.change_usage(id, &before, &after)?;
    if let Some(last) = fresh.readings.last() {
        let reading = serde_json::to_value(last).expect("a reading is plain data");
        tx.set(&UsageCursor { instance_id: id, reading })?;
    }
    Ok(after)
}

/// The readings that are not in the series yet, and the last reading that is in it.
struct NewReadings<'a> {
    cursor: Option<&'a Reading>,
    readings: &'a [Reading],
}

/// Returns the readings after the cursor. If its machine has no readings left, returns those of later machines.
fn new_readings<'a>(cursor: Option<&'a Reading>, readings: &'a [Reading]) -> NewReadings<'a> {
    let Some(last) = cursor.map(|cursor| cursor.moment) else { return NewReadings { cursor, readings } };
    let of_machine = |reading: &Reading| reading.moment.run == last.run;
    let is_known = |reading: &Reading| of_machine(reading) && reading.moment.up_ms <= last.up_ms;
    let first = match (readings.iter().rposition(is_known), readings.iter().position(of_machine)) {
        (Some(known), _) => known + 1,
        (None, Some(of_machine)) => of_machine,
        (None, None) => readings.iter().position(|reading| reading.moment.run > last.run).unwrap_or(readings.len()),
    };
    NewReadings { cursor, readings: &readings[first..] }
}

impl<'a> NewReadings<'a> {
    /// Pairs each reading with its predecessor of the same machine, and skips those without elapsed time.
    fn pairs(&self) -> impl Iterator<Item = (Option<&'a Reading>, &'a Reading)> {
        let mut previous = self.cursor;
        self.readings.iter().filter_map(move |reading| {
            let before = previous.replace(reading).filter(|before| before.moment.run == reading.moment.run);
            (reading.moment.up_ms > before.map_or(0, |before| before.moment.up_ms)).then_some((before, reading))
        })
    }
}

/// Returns the usage between two readings of a machine, or since its start.
fn difference(before: Option<&Reading>, after: &Reading) -> Datapoint {
    let none = Reading::default();
    let before = before.unwrap_or(&none);
    let mut point = Datapoint {
        run: after.moment.run,
        end_ms: after.moment.at_ms,
        period_ms: after.moment.up_ms.saturating_sub(before.moment.up_ms),
        booting: !before.is_up,
        cpu_ns: after.cpu_ns.saturating_sub(before.cpu_ns),
        cpu_throttled_ns: throttled_ns(after).saturating_sub(throttled_ns(before)),
        touched_bytes: after.resident_bytes,
        network: network(before.net.unwrap_or_default(), after.net.unwrap_or_default()),
        credits: after.cpu_budget.as_ref().map(credits),
        ..Datapoint::default()
    };
    for disk in &after.disks {
        let earlier = before.disks.iter().find(|earlier| earlier.id == disk.id);
        let all = if disk.id.starts_with(VOLUME) { &mut point.ebs } else { &mut point.instance_store };
        all.add(&disk_use(earlier, disk));
    }
    point
}

fn throttled_ns(reading: &Reading) -> u64 {
    reading.cpu_budget.map_or(0, |budget| budget.throttled_ns)
}

fn credits(budget: &BudgetReading) -> CreditBalance {
    let BudgetReading { saved_ns, extra_ns, owed_ns, charged_ns, .. } = *budget;
    CreditBalance { saved_ns, launch_ns: extra_ns, surplus_ns: owed_ns, charged_ns }
}

fn network(before: NetRecord, after: NetRecord) -> NetworkUse {
    NetworkUse {
        received_bytes: after.received_bytes.saturating_sub(before.received_bytes),
        sent_bytes: after.sent_bytes.saturating_sub(before.sent_bytes),
        received_packets: after.received_frames.saturating_sub(before.received_frames),
        sent_packets: after.sent_frames.saturating_sub(before.sent_frames),
        throttled_ns: after.throttled_ns.saturating_sub(before.throttled_ns),
    }
}

/// Returns a disk's usage between two readings. If the disk was detached and attached again meanwhile, its counters
/// started at zero.
fn disk_use(before: Option<&DiskReading>, after: &DiskReading) -> DiskUse {
    let sums = |disk: &DiskReading| [disk.read_bytes, disk.written_bytes, disk.reads, disk.writes, disk.throttled_ns];
    let is_same_attachment =
        |before: &&DiskReading| sums(before).iter().zip(sums(after)).all(|(before, after)| *before <= after);
    let none = DiskReading::default();
    let earlier = sums(before.filter(is_same_attachment).unwrap_or(&none));
    let mut difference = sums(after);
    difference.iter_mut().zip(earlier).for_each(|(after, before)| *after -= before);
    let [read_bytes, written_bytes, reads, writes, throttled_ns] = difference;
    DiskUse { read_bytes, written_bytes, reads, writes, throttled_ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::usage::SampleTime;

    fn reading(run: u64, up_ms: u64) -> Reading {
        let moment = SampleTime { run, up_ms, at_ms: run * 1000 + up_ms };
        let disk = DiskReading { id: "vol0".into(), writes: up_ms / 10, ..DiskReading::default() };
        Reading { moment, is_up: up_ms >= 1000, cpu_ns: up_ms * 7, disks: vec![disk], ..Reading::default() }
    }

    fn periods(cursor: Option<&Reading>, readings: &[Reading]) -> Vec<(u64, u64)> {
        let new_readings = new_readings(cursor, readings);
        new_readings
            .pairs()
            .map(|(before, after)| difference(before, after))
            .map(|new| (new.run, new.period_ms))
            .collect()
    }

    #[test]
    fn each_reading_enters_series_once() {
        let file = [reading(1, 0), reading(1, 500), reading(1, 2000), reading(2, 0), reading(2, 100)];
        assert_eq!(periods(None, &file), [(1, 500), (1, 1500), (2, 100)]);
        assert_eq!(periods(Some(&file[1]), &file), [(1, 1500), (2, 100)]);
        assert_eq!(periods(Some(&file[4]), &file), []);
        // The cursor is a status between two readings, or readings were thinned out meanwhile.
        assert_eq!(periods(Some(&reading(1, 700)), &file), [(1, 1300), (2, 100)]);
        assert_eq!(periods(Some(&file[1]), &file[2..]), [(1, 1500), (2, 100)]);
        assert_eq!(periods(Some(&reading(2, 130)), &file), []);
        // The machine could not write its first readings. The readings before those are in the series already.
        assert_eq!(periods(Some(&reading(3, 5)), &file), []);
        assert_eq!(periods(Some(&reading(3, 5)), &[&file[..], &[reading(3, 25)]].concat()), [(3, 20)]);
    }

    #[test]
    fn datapoint_is_difference_of_two_readings() {
        let (before, after) = (reading(1, 500), reading(1, 2000));
        let point = difference(Some(&before), &after);
        assert_eq!((point.cpu_ns, point.ebs.writes, point.booting, point.end_ms), (10_500, 150, true, 3000));
        assert!(!difference(Some(&after), &reading(1, 2001)).booting);
    }

    #[test]
    fn reattached_disk_counts_from_zero() {
        let disk = |writes| DiskReading { id: "ephemeral0".into(), writes, ..DiskReading::default() };
        let with =
            |disks: &[u64]| Reading { disks: disks.iter().map(|writes| disk(*writes)).collect(), ..reading(1, 9) };
        let writes = |before: &Reading, after: &Reading| {
            let point = difference(Some(before), after);
            assert_eq!(point.ebs, DiskUse::default());
            point.instance_store.writes
        };
        assert_eq!(writes(&with(&[40]), &with(&[50])), 10);
        assert_eq!(writes(&with(&[40]), &with(&[30])), 30);
        assert_eq!(writes(&with(&[]), &with(&[30])), 30);
        assert_eq!(writes(&with(&[30]), &with(&[])), 0);
    }
}
