//! Renders a bench as a table, followed by the conclusions.

use super::super::output::{Align, Cell, Screen, Table, Tone};
use super::{Shown, figure};
use cloud::bench::bound::By;
use cloud::bench::comparison::ComparisonRow;

/// Renders a line for each measure of each type, then failures, notes, the host and the chosen type.
pub fn render(shown: &Shown, screen: Screen) -> String {
    let mut lines = figures(shown, screen);
    lines.push(String::new());
    for of in &shown.report.types {
        if let Some(why) = &of.failed {
            let name = of.request.instance_type.name;
            lines.push(screen.paint(Tone::Warning, &format!("{name} was not fully measured: {why}")));
        }
    }
    lines.extend(shown.notes());
    let host = &shown.report.host;
    lines.push(format!("This host: {}, {} CPUs, {}.", host.cpu, host.cpus, shown.kvm()));
    lines.push(screen.paint(Tone::Strong, &shown.choice()));
    lines.join("\n")
}

fn figures(shown: &Shown, screen: Screen) -> Vec<String> {
    let columns = [
        ("Measure", Align::Left),
        ("Type", Align::Left),
        ("Runs", Align::Right),
        ("Min", Align::Right),
        ("Median", Align::Right),
        ("p95", Align::Right),
        ("Unit", Align::Left),
        ("Slower by", Align::Right),
        ("Limit", Align::Left),
    ];
    let mut table = Table::new(screen, &columns);
    for compared in &shown.comparison.measures {
        for entry in &compared.entries {
            let is_cheapest = compared.cheapest == Some(entry.subject);
            table.row(row(shown, compared.measure.name, compared.measure.unit, entry, is_cheapest));
        }
    }
    table.lines()
}

fn row(shown: &Shown, name: &str, unit: &str, entry: &ComparisonRow, is_cheapest: bool) -> Vec<Cell> {
    let subject = Cell::new(shown.name(entry.subject), if is_cheapest { Tone::Good } else { Tone::Plain });
    let runs = entry.result.samples.len().to_string();
    let failure = entry.result.not_measured.as_ref().map(|why| format!("not measured: {why}"));
    let Some((summary, bound)) = &entry.summary else {
        let nothing = || Cell::from("-");
        let why = Cell::new(failure.unwrap_or_default(), Tone::Warning);
        return vec![name.into(), subject, runs.into(), nothing(), nothing(), nothing(), "".into(), nothing(), why];
    };
    let whose = match bound.by {
        By::Type => "the type",
        By::Host => "this host",
    };
    let slower = match entry.slowdown {
        Some(0.0) => "fastest".into(),
        Some(slowdown) => format!("{:.0}%", slowdown * 100.0),
        None => "-".into(),
    };
    let limit = match failure {
        Some(failure) => Cell::new(failure, Tone::Warning),
        None => Cell::from(format!("{whose}: {}", bound.why)),
    };
    vec![
        name.into(),
        subject,
        runs.into(),
        figure(summary.min).into(),
        Cell::new(figure(summary.median), Tone::Strong),
        figure(summary.p95).into(),
        unit.into(),
        slower.into(),
        limit,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{report, shown};
    use super::*;

    #[test]
    fn table_has_results_or_reason_for_each_type() {
        let report = report();
        let text = render(&shown(&report), Screen::PLAIN);
        let line = |beginning: &[&str]| {
            let words = |line: &&str| beginning.iter().all(|word| line.contains(word));
            text.lines().find(words).unwrap_or_else(|| panic!("{beginning:?}: {text}")).to_string()
        };
        let micro = line(&["integer-one", "t3.micro"]);
        assert!(
            ["90.0", "100", "110", "MiB/s", "100%", "this host"].iter().all(|word| micro.contains(word)),
            "{micro}"
        );
        assert!(line(&["integer-one", "m5.large"]).contains("fastest"));
        assert!(line(&["command", "m5.large"]).contains("not measured: exit code 3"));
        assert!(line(&["m5.24xlarge"]).contains("no room"));
        assert!(line(&["This host"]).contains("software KVM"));
    }
}
