//! Renders a bench as one self-contained web page: charts, tables, limits, and all figures as JSON.

use std::fmt::Write as _;

use super::chart::{Bar, chart, escape};
use super::{Shown, figure};
use cloud::bench::bound::By;
use cloud::bench::comparison::{Compared, ComparisonRow};
use cloud::bench::measure::Better;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #667; --line: #d8dce2; --bar: #7f9cc4; --chosen: #3a8a5f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #15181c; --soft: #9aa3ad; --line: #343a42; --bar: #50709c; --chosen: #3f9a6b }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 1rem; max-width: 46rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.choice { font-size: 1.1rem; border-left: 4px solid var(--chosen); padding-left: .75rem }
svg { width: 100%; max-width: 36rem; height: auto; display: block }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.bar { fill: var(--bar) } .bar.chosen { fill: var(--chosen) }
.whisker { stroke: var(--ink); stroke-width: 1.2; fill: none }
ul { padding-left: 1.2rem; margin: .5rem 0 } li, .soft { color: var(--soft); font-size: .9rem }
li b { color: var(--ink); font-weight: 600 }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line) }
code { overflow-wrap: anywhere }
";

/// Renders the page. `data` is JSON that is embedded in it, for programs.
pub fn page(shown: &Shown, data: &str) -> String {
    let names: Vec<&str> = shown.report.types.iter().map(|of| of.request.instance_type.name).collect();
    let title = format!("wisp bench: {}", names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p class=\"choice\">{choice}</p>\n",
        title = escape(&title),
        choice = escape(&shown.choice()),
    );
    list(&mut page, &shown.notes());
    types(&mut page, shown);
    for compared in &shown.comparison.measures {
        section(&mut page, shown, compared);
    }
    host(&mut page, shown);
    // Escape "<", so that no string in the data can end the script element.
    let data = data.replace('<', "\\u003c");
    let _ = write!(page, "<script type=\"application/json\" id=\"bench\">{data}</script>\n</body>\n</html>\n");
    page
}

fn list(page: &mut String, sentences: &[String]) {
    if sentences.is_empty() {
        return;
    }
    page.push_str("<ul>\n");
    sentences.iter().for_each(|sentence| page.push_str(&format!("<li>{}</li>\n", escape(sentence))));
    page.push_str("</ul>\n");
}

fn types(page: &mut String, shown: &Shown) {
    page.push_str(
        "<div class=\"table\"><table>\n<tr><th>Type</th><th>vCPUs</th><th>Memory</th><th>Price</th><th></th></tr>\n",
    );
    for (of, price) in shown.report.types.iter().zip(&shown.prices) {
        let price = price.map_or("-".into(), |price| price.to_string());
        let failed = of.failed.as_ref().map(|why| format!("not fully measured: {why}")).unwrap_or_default();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{} GiB</td><td>{}</td><td>{}</td></tr>",
            escape(of.request.instance_type.name),
            of.request.vcpus,
            of.request.memory_mib as f64 / 1024.0,
            escape(&price),
            escape(&failed),
        );
    }
    page.push_str("</table></div>\n");
}

fn section(page: &mut String, shown: &Shown, Compared { measure, entries, cheapest }: &Compared) {
    let better = match measure.better {
        Better::Higher => "higher is better",
        Better::Lower => "lower is better",
    };
    let unit = measure.unit;
    let _ = writeln!(
        page,
        "<section id=\"{}\">\n<h2>{}</h2>\n\
         <p class=\"soft\">{}, {better}; bars show the median, lines the range from minimum to p95</p>",
        escape(measure.name),
        escape(measure.title),
        escape(unit),
    );
    let bar = |entry: &ComparisonRow| {
        let summary = entry.summary.as_ref()?.0;
        let slower = match entry.slowdown {
            Some(slowdown) if slowdown > 0.0 => format!(", {:.0}% slower", slowdown * 100.0),
            _ => String::new(),
        };
        Some(Bar {
            label: shown.name(entry.subject),
            value: format!("{} {unit}{slower}", figure(summary.median)),
            min: summary.min,
            median: summary.median,
            p95: summary.p95,
            is_chosen: *cheapest == Some(entry.subject),
        })
    };
    let bars: Vec<Bar> = entries.iter().filter_map(bar).collect();
    if !bars.is_empty() {
        page.push_str(&chart(measure.title, &bars));
    }
    page.push_str("<ul>\n");
    for entry in entries {
        let name = escape(shown.name(entry.subject));
        let _ = writeln!(page, "<li><b>{name}</b> {}</li>", escape(&sentence(entry, unit)));
    }
    page.push_str("</ul>\n</section>\n");
}

/// Describes the result of one type in a measure, or why there is none.
fn sentence(entry: &ComparisonRow, unit: &str) -> String {
    let mut parts = Vec::new();
    if let Some((summary, bound)) = &entry.summary {
        let (min, median, p95) = (figure(summary.min), figure(summary.median), figure(summary.p95));
        let runs = entry.result.samples.len();
        parts.push(format!("{min} – {median} – {p95} {unit} ({runs} runs)"));
        let whose = match bound.by {
            By::Type => "limit of the type",
            By::Host => "limit of this host",
        };
        parts.push(format!("{whose}: {}", bound.why));
    }
    parts.extend(entry.result.not_measured.as_ref().map(|why| format!("not measured: {why}")));
    parts.join(". ")
}

fn host(page: &mut String, shown: &Shown) {
    let host = &shown.report.host;
    let limits = if shown.limited { "enforced" } else { "not enforced" };
    let rows = [
        ("Processor", format!("{}, {} CPUs", host.cpu, host.cpus)),
        ("KVM", shown.kvm().to_string()),
        ("Date", shown.began.to_string()),
        ("wisp", env!("CARGO_PKG_VERSION").to_string()),
        ("Image", shown.image.to_string()),
        ("Runs", format!("{}, each in a new instance", shown.runs)),
        ("Type limits", limits.to_string()),
    ];
    page.push_str("<h2>Test environment</h2>\n<div class=\"table\"><table>\n");
    for (label, text) in rows {
        let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(label), escape(&text));
    }
    let _ = writeln!(
        page,
        "<tr><th>Command</th><td><code>{}</code></td></tr>\n</table></div>\n\
         <p class=\"soft\">p95 is the 95th percentile by nearest rank: with fewer than 20 runs, the maximum. \
         Green marks the cheapest type within {}% of the fastest.</p>",
        escape(&shown.command_line.join(" ")),
        shown.within,
    );
}

#[cfg(test)]
mod tests {
    use super::super::shape::shape;
    use super::super::tests::{report, shown};
    use super::*;
    use serde_json::Value;

    #[test]
    fn page_escapes_untrusted_text() {
        let report = report();
        let shown = shown(&report);
        let data = serde_json::to_string(&shape(&shown)).unwrap();
        let page = page(&shown, &data);
        for raw in ["A <fast>", "<no>", "<i>"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("A &lt;fast&gt; processor") && page.contains("&lt;no&gt; &amp; &quot;such&quot; file"));
        // The script element is complete and ends only once.
        assert_eq!(page.matches("</script>").count(), 1);
        let inside = page.split("id=\"bench\">").nth(1).unwrap().split("</script>").next().unwrap();
        assert_eq!(serde_json::from_str::<Value>(inside).unwrap(), serde_json::from_str::<Value>(&data).unwrap());
    }

    #[test]
    fn page_loads_no_external_resources() {
        let report = report();
        let shown = shown(&report);
        let page = page(&shown, &serde_json::to_string(&shape(&shown)).unwrap());
        let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
        assert!(["http", "src=", "href=", "@import", "url("].iter().all(|word| !elsewhere.contains(word)));
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
    }
}
