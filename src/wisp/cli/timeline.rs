//! `wisp timeline`: shows the phases of a boot with their durations, and VM exits by reason.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::output::{self, Align, Cell, Output, Screen, Table, Tone};
use cloud::template;
use machine::control::VmmStatus;
use machine::end_record::EndRecord;
use machine::timeline::{Mark, MarkRecord, TimelineRecord};
use node::home::Home;
use node::instance::MachineHandle;

/// The maximum width of a bar in columns.
const BAR: usize = 40;

/// Show the phases of a boot with their durations.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp run -- true && wisp timeline      the phases of this boot
  wisp timeline web                      an instance's last boot
  wisp timeline --output json            in nanoseconds")]
pub struct Args {
    /// Instance ID, unique ID prefix or name [default: the guest of the last `wisp run`].
    #[arg(value_name = "INSTANCE")]
    instance: Option<String>,
}

/// The output of `--output json`. Times are nanoseconds of the monotonic clock.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Timeline<'a> {
    /// Process ID of the VMM's supervisor.
    pid: u32,
    #[serde(rename = "VCpus")]
    vcpus: u32,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u64,
    software_kvm: bool,
    restored: bool,
    /// The name of the template that the guest was restored from.
    template: Option<&'a str>,
    marks: Vec<MarkShape>,
    exits: Vec<ExitShape<'a>>,
    resident_bytes: u64,
    vmm_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MarkShape {
    mark: Mark,
    at_ns: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExitShape<'a> {
    reason: &'a str,
    count: u64,
}

impl<'a> From<&'a VmmStatus> for Timeline<'a> {
    fn from(status: &'a VmmStatus) -> Self {
        Timeline {
            pid: status.pid,
            vcpus: status.vcpus,
            memory_mib: status.memory_mib,
            software_kvm: status.software_kvm,
            restored: status.timeline.is_restored(),
            template: template_of(status),
            marks: status.timeline.marks.iter().map(|&MarkRecord { mark, at_ns }| MarkShape { mark, at_ns }).collect(),
            exits: status.exits.iter().map(|exit| ExitShape { reason: &exit.reason, count: exit.count }).collect(),
            resident_bytes: status.guest_resident_bytes,
            vmm_bytes: status.vmm_resident_bytes,
        }
    }
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let status = match &args.instance {
        Some(instance) => of_instance(instance)?,
        None => of_last_run()?,
    };
    match output {
        Output::Json => output::print_json(&Timeline::from(&status))?,
        Output::Table => output::print(&render(&status, Screen::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn of_instance(reference: &str) -> anyhow::Result<VmmStatus> {
    let cloud = super::open_cloud()?;
    let record = cloud.instances().find(reference)?;
    let dir = cloud.dir(record.meta.id);
    if record.status.state.has_machine() {
        return Ok(MachineHandle::connect(&dir)?.status()?);
    }
    match dir.end() {
        Some(EndRecord::Ended { status, .. }) => Ok(*status),
        _ => anyhow::bail!("{} is {} and has no boot timeline", record.meta.id, record.status.state),
    }
}

fn of_last_run() -> anyhow::Result<VmmStatus> {
    let path = Home::open()?.last_timeline();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            anyhow::bail!("no boot timeline in this data directory yet: start a guest with `wisp run` first")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged; the next `wisp run` will overwrite it", path.display()))
}

/// Stores the timeline of a `wisp run`, so that `wisp timeline` can show it later.
pub fn keep(home: &Home, status: &VmmStatus) -> anyhow::Result<()> {
    Ok(node::home::write_private(&home.last_timeline(), &serde_json::to_vec_pretty(status)?)?)
}

/// Renders a table of phases with bars, and a table of VM exits.
pub fn render(status: &VmmStatus, screen: Screen) -> String {
    let mut lines = phase_lines(&status.timeline, screen);
    lines.push(String::new());
    let mut exits = status.exits.clone();
    exits.sort_by_key(|exit| std::cmp::Reverse(exit.count));
    let mut table = Table::new(screen, &[("VM exit", Align::Left), ("Count", Align::Right)]);
    for exit in &exits {
        table.row(vec![Cell::from(exit.reason.clone()), Cell::from(exit.count.to_string())]);
    }
    lines.extend(table.lines());
    lines.push(String::new());
    lines.push(format!(
        "{}, {} MiB{}; {} of guest memory held, {} used by the VMM itself{}",
        output::count(status.vcpus as usize, "vCPU"),
        status.memory_mib,
        origin(status),
        output::bytes(status.guest_resident_bytes),
        output::bytes(status.vmm_resident_bytes),
        if status.software_kvm { "; software KVM emulated the guest's kernel" } else { "" },
    ));
    lines.join("\n")
}

/// Returns the name of the template that the guest was restored from. The VMM reports it, so its form is checked.
fn template_of(status: &VmmStatus) -> Option<&str> {
    status.restored_from.as_deref().filter(|name| status.timeline.is_restored() && template::is_name(name))
}

fn origin(status: &VmmStatus) -> String {
    match template_of(status) {
        Some(name) => format!(", restored from the template {name}"),
        None if status.timeline.is_restored() => ", restored from a snapshot".into(),
        None => String::new(),
    }
}

fn phase_lines(timeline: &TimelineRecord, screen: Screen) -> Vec<String> {
    // Sort by time, because the marks may be stored in a different order.
    let mut marks = timeline.marks.clone();
    marks.sort_by_key(|record| record.at_ns);
    // With a quiet kernel, the first console output can come after the agent is ready. It is then not a boot phase.
    let ready = timeline.at(Mark::AgentReady).unwrap_or(u64::MAX);
    marks.retain(|record| record.mark != Mark::FirstConsoleByte || record.at_ns < ready);
    let Some((first, last)) = marks.first().zip(marks.last()) else {
        return vec!["No boot phases were recorded.".into()];
    };
    let (start, total) = (first.at_ns, (last.at_ns - first.at_ns).max(1));
    let columns = [("Phase", Align::Left), ("Duration", Align::Right), ("Elapsed", Align::Right), ("", Align::Left)];
    let mut table = Table::new(screen, &columns);
    for pair in marks.windows(2) {
        let (from, to) = (pair[0].at_ns - start, pair[1].at_ns - start);
        let column = |at: u64| (at as u128 * BAR as u128 / u128::from(total)) as usize;
        let (left, right) = (column(from).min(BAR - 1), column(to).max(column(from) + 1).min(BAR));
        let bar = format!("{}{}", " ".repeat(left), "█".repeat(right - left.min(right)));
        table.row(vec![
            Cell::from(phase(pair[1].mark, timeline)),
            Cell::new(output::duration(Duration::from_nanos(to - from)), Tone::Strong),
            Cell::from(output::duration(Duration::from_nanos(to))),
            Cell::new(bar, Tone::Good),
        ]);
    }
    table.lines()
}

fn phase(mark: Mark, timeline: &TimelineRecord) -> String {
    match mark {
        Mark::FirstInstruction if timeline.is_restored() => "start vCPUs".into(),
        Mark::AgentReady if timeline.is_restored() => "agent resumed".into(),
        Mark::AgentReady if timeline.at(Mark::TemplateReady).is_some() => "template saved, identity applied".into(),
        mark => mark.phase().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> VmmStatus {
        let marks = Mark::ALL.into_iter().enumerate();
        let marks = marks.map(|(index, mark)| MarkRecord { mark, at_ns: 1000 + 1_000_000 * (index as u64).pow(2) });
        VmmStatus {
            vcpus: 1,
            memory_mib: 256,
            timeline: TimelineRecord { marks: marks.collect() },
            ..VmmStatus::default()
        }
    }

    #[test]
    fn every_phase_has_a_line_with_a_bar() {
        let text = render(&status(), Screen::PLAIN);
        for mark in &Mark::ALL[1..] {
            let phase = phase(*mark, &status().timeline);
            let line = text.lines().find(|line| line.contains(&phase)).unwrap();
            assert!(line.contains('█'), "{line}");
        }
    }

    #[test]
    fn template_is_named_unless_its_name_is_malformed() {
        let name = "0123456789abcdef0123";
        let named = |name: &str| VmmStatus { restored_from: Some(name.into()), ..status() };
        assert!(render(&named(name), Screen::PLAIN).contains(", restored from the template 0123456789abcdef0123;"));
        for other in ["../../etc", "\u{1b}[2J", "saved-x1"] {
            assert!(render(&named(other), Screen::PLAIN).contains(", restored from a snapshot;"), "{other:?}");
        }
    }

    #[test]
    fn console_output_after_agent_ready_is_not_a_phase() {
        let mut status = status();
        let late = status.timeline.at(Mark::AgentReady).map(|at| at + 1);
        let word = status.timeline.marks.iter_mut().find(|record| record.mark == Mark::FirstConsoleByte).unwrap();
        word.at_ns = late.unwrap();
        assert!(!render(&status, Screen::PLAIN).contains("first console output"));
    }

    #[test]
    fn stored_timeline_is_read_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        keep(&home, &status()).unwrap();
        let text = std::fs::read_to_string(home.last_timeline()).unwrap();
        assert_eq!(serde_json::from_str::<VmmStatus>(&text).unwrap(), status());
    }

    #[test]
    fn json_has_marks_in_nanoseconds() {
        let mut status = status();
        status.timeline.marks.truncate(1);
        let value = serde_json::to_value(Timeline::from(&status)).unwrap();
        assert_eq!(value["Marks"], json!([{"Mark": "process-start", "AtNs": 1000}]));
        assert_eq!((&value["VCpus"], &value["MemoryMiB"], &value["Restored"]), (&1.into(), &256.into(), &false.into()));
    }

    #[test]
    fn timeline_without_marks_is_reported() {
        assert!(render(&VmmStatus::default(), Screen::PLAIN).contains("No boot phases were recorded."));
    }
}
