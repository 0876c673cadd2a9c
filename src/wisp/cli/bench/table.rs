//! Renders a bench as a table, followed by the conclusions.

use super::super::output::{Align, Cell, Screen, Table, Tone};
use super::Shown;
use super::limits::{Limit, limits};
use super::shown::{figure, slower_by};
use cloud::bench::bound::By;
use cloud::bench::comparison::{Compared, ComparisonRow};

/// Renders a line for each measure of each type, then failures, limits, notes, the host and the chosen type.
pub fn render(shown: &Shown, screen: Screen) -> String {
    let mut lines = figures(shown, screen);
    lines.push(String::new());
    lines.extend(shown.failures().iter().map(|failure| screen.paint(Tone::Warning, failure)));
    lines.extend(limits(shown).iter().map(Limit::sentence));
    lines.extend(shown.notes());
    let host = &shown.report.host;
    lines.push(format!("This host: {}, {} CPUs, {}.", host.cpu, host.cpus, shown.kvm()));
    if shown.prices.iter().any(Option::is_some) {
        lines.push(format!("Prices: dollars per hour ({}).", shown.price_list));
    }
    lines.push(screen.paint(Tone::Strong, &shown.choice()));
    lines.extend(shown.caveats().iter().map(|caveat| screen.paint(Tone::Strong, caveat)));
    lines.join("\n")
}

fn figures(shown: &Shown, screen: Screen) -> Vec<String> {
    let columns = [
        ("Measure", Align::Left),
        ("Type", Align::Left),
        ("$/hour", Align::Right),
        ("Runs", Align::Right),
        ("Median", Align::Right),
        ("95% interval", Align::Right),
        ("Unit", Align::Left),
        ("Slower by", Align::Right),
        ("Limit", Align::Left),
    ];
    let mut table = Table::new(screen, &columns);
    for compared in &shown.comparison.measures {
        for entry in &compared.entries {
            table.row(row(shown, compared, entry));
        }
    }
    table.lines()
}

fn row(shown: &Shown, compared: &Compared, entry: &ComparisonRow) -> Vec<Cell> {
    let is_cheapest = compared.cheapest == Some(entry.subject);
    let (median, interval) = match &entry.summary {
        Some((summary, _)) => {
            let interval = summary.interval.map(|of| format!("{}–{}", figure(of.low), figure(of.high)));
            (figure(summary.median), interval.unwrap_or_else(|| "-".into()))
        }
        None => ("-".into(), "-".into()),
    };
    let limit = match &entry.summary {
        _ if entry.result.not_measured.is_some() => Cell::new("not measured", Tone::Warning),
        Some((_, bound)) => Cell::from(match bound.by {
            By::Type => "type",
            By::Host => "host",
        }),
        None => Cell::from("-"),
    };
    vec![
        compared.measure.name.into(),
        Cell::new(shown.name(entry.subject), if is_cheapest { Tone::Good } else { Tone::Plain }),
        shown.price(entry.subject).into(),
        entry.result.samples.len().to_string().into(),
        Cell::new(median, Tone::Strong),
        interval.into(),
        compared.measure.unit.into(),
        slower_by(entry).into(),
        limit,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::shown::tests::{report, shown};
    use super::*;

    #[test]
    fn table_has_figures_and_each_explanation_once() {
        let report = report();
        let text = render(&shown(&report), Screen::PLAIN);
        let expected = "\
Measure      Type      $/hour  Runs  Median  95% interval  Unit   Slower by  Limit
integer-one  t3.micro  0.0104     5     100      90.0–110  MiB/s       100%  host
integer-one  m5.large   0.096     5     200       190–210  MiB/s    fastest  host
command      t3.micro  0.0104     3    2.25             -  s        fastest  type
command      m5.large   0.096     0       -             -  s              -  not measured

command was not measured on m5.large: exit code 3: <no> & \"such\" file
m5.24xlarge was not fully measured: no room
Limit of the type: 2 vCPUs, in command.
Limit of this host: speed of one CPU, in integer-one.
Stopped after 5 runs: another would exceed 10 min.
Guests of all types ran at the same time and took turns.
vCPUs were pinned to CPUs 0, 1, the same for all types.
This host: A <fast> processor, 2 CPUs, software KVM, which emulates guest kernels.
Prices: dollars per hour (my <list>).
The cheapest type within 25% of the fastest for command is t3.micro, at $0.0104 per hour.
This is uncertain: with fewer than 5 runs, differences may be chance.";
        assert_eq!(text, expected);
    }
}
