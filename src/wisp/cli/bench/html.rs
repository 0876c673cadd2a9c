//! Renders a bench as one self-contained web page: the verdict, charts, tables, limits, and all figures as JSON.

use std::fmt::Write as _;

use super::Shown;
use super::chart::{Bar, chart, escape};
use super::limits::{Limit, limits};
use super::shown::{figure, slower_by};
use cloud::bench::bound::By;
use cloud::bench::comparison::{Compared, ComparisonRow};
use cloud::bench::measure::Better;
use cloud::bench::report::TypeReport;
use cloud::bench::statistics::MIN_VALUES;

const STYLE: &str = include_str!("page.css");

/// Renders the page. `data` is JSON that is embedded in it, for programs.
pub fn page(shown: &Shown, data: &str) -> String {
    let names: Vec<&str> = shown.report.types.iter().map(|of| of.request.instance_type.name).collect();
    let title = format!("wisp bench: {}", names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&title),
    );
    verdict(&mut page, shown);
    types(&mut page, shown);
    for compared in &shown.comparison.measures {
        section(&mut page, shown, compared);
    }
    page.push_str("<h2>Limits and notes</h2>\n");
    list(&mut page, limits(shown).iter().map(Limit::sentence).chain(shown.notes()));
    environment(&mut page, shown);
    // Escape "<", so that no string in the data can end the script element.
    let data = data.replace('<', "\\u003c");
    let _ = write!(page, "<script type=\"application/json\" id=\"bench\">{data}</script>\n</body>\n</html>\n");
    page
}

fn verdict(page: &mut String, shown: &Shown) {
    let heading = match shown.comparison.cheapest {
        Some(subject) => format!("{} is the cheapest type that is fast enough", shown.name(subject)),
        None => "No type was chosen".into(),
    };
    // Writing to a string cannot fail.
    let _ =
        writeln!(page, "<header class=\"verdict\">\n<h1>{}</h1>\n<p>{}</p>", escape(&heading), escape(&shown.choice()));
    for caveat in shown.caveats() {
        let _ = writeln!(page, "<p class=\"caveat\">{}</p>", escape(&caveat));
    }
    page.push_str("</header>\n");
}

fn list(page: &mut String, sentences: impl Iterator<Item = String>) {
    let items: String = sentences.map(|sentence| format!("<li>{}</li>\n", escape(&sentence))).collect();
    if !items.is_empty() {
        let _ = write!(page, "<ul class=\"notes\">\n{items}</ul>\n");
    }
}

/// Adds a table that a narrow screen shows as one block per row. Each row has a class and a cell per column.
fn table(page: &mut String, columns: &[&str], rows: impl Iterator<Item = (&'static str, Vec<String>)>) {
    let heads: String = columns.iter().map(|column| format!("<th>{}</th>", escape(column))).collect();
    let _ = write!(page, "<div class=\"scroll\"><table class=\"stack\">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n");
    for (class, cells) in rows {
        let cell =
            |(column, text): (&&str, String)| format!("<td data-label=\"{}\">{}</td>", escape(column), escape(&text));
        let cells: String = columns.iter().zip(cells).map(cell).collect();
        let _ = writeln!(page, "<tr class=\"{class}\">{cells}</tr>");
    }
    page.push_str("</tbody>\n</table></div>\n");
}

fn types(page: &mut String, shown: &Shown) {
    page.push_str("<h2>Instance types</h2>\n");
    let row = |(index, of): (usize, &TypeReport)| {
        let cells = vec![
            of.request.instance_type.name.to_owned(),
            shown.price(index),
            of.request.vcpus.to_string(),
            format!("{} GiB", of.request.memory_mib as f64 / 1024.0),
        ];
        (class(shown.comparison.cheapest == Some(index)), cells)
    };
    let rows = shown.report.types.iter().enumerate().map(row);
    table(page, &["Type", "Dollars per hour", "vCPUs", "Memory"], rows);
    let _ = writeln!(page, "<p class=\"soft\">Prices: {}.</p>", escape(&shown.price_list));
    list(page, shown.failures().into_iter());
}

fn class(is_chosen: bool) -> &'static str {
    if is_chosen { "chosen" } else { "" }
}

fn section(page: &mut String, shown: &Shown, compared: &Compared) {
    let Compared { measure, entries, cheapest } = compared;
    let better = match measure.better {
        Better::Higher => "higher is better",
        Better::Lower => "lower is better",
    };
    let _ = writeln!(
        page,
        "<section id=\"{}\">\n<h2>{}</h2>\n<p class=\"soft\">{}, {better}</p>",
        escape(measure.name),
        escape(measure.title),
        escape(measure.unit),
    );
    let bars: Vec<Bar> = entries.iter().filter_map(|entry| bar(shown, compared, entry)).collect();
    if !bars.is_empty() {
        page.push_str(&chart(measure.title, &bars));
    }
    let rows = entries.iter().map(|entry| (class(*cheapest == Some(entry.subject)), cells(shown, entry)));
    table(page, &["Type", "Median", "95% interval", "Min – p95", "Runs", "Slower by", "Limit"], rows);
    page.push_str("</section>\n");
}

fn bar(shown: &Shown, compared: &Compared, entry: &ComparisonRow) -> Option<Bar<'static>> {
    let (summary, _) = entry.summary.as_ref()?;
    let unit = compared.measure.unit;
    let slower = match slower_by(entry).as_str() {
        "-" => String::new(),
        percent if percent.ends_with('%') => format!(", {percent} slower"),
        words => format!(", {words}"),
    };
    let (low, high) = summary.interval.map_or((summary.min, summary.p95), |interval| (interval.low, interval.high));
    Some(Bar {
        label: shown.name(entry.subject),
        value: format!("{} {unit}{slower}", figure(summary.median)),
        low,
        median: summary.median,
        high,
        is_chosen: compared.cheapest == Some(entry.subject),
    })
}

/// Returns the cells of one type in a measure.
fn cells(shown: &Shown, entry: &ComparisonRow) -> Vec<String> {
    let range = |low: f64, high: f64| format!("{} – {}", figure(low), figure(high));
    let mut cells = vec![shown.name(entry.subject).to_owned()];
    match &entry.summary {
        Some((summary, bound)) => {
            let interval = summary.interval.map(|interval| range(interval.low, interval.high));
            let whose = match bound.by {
                By::Type => "type",
                By::Host => "host",
            };
            let detail = bound.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
            cells.extend([
                figure(summary.median),
                interval.unwrap_or_else(|| "-".into()),
                range(summary.min, summary.p95),
                entry.result.samples.len().to_string(),
                slower_by(entry),
                format!("{whose}: {}{detail}", bound.limit),
            ]);
        }
        None => {
            cells.extend(["-", "-", "-", "0", "-", "not measured"].map(String::from));
        }
    }
    cells
}

fn environment(page: &mut String, shown: &Shown) {
    let host = &shown.report.host;
    let limits = if shown.limited { "enforced" } else { "not enforced" };
    let rows = [
        ("Processor", format!("{}, {} CPUs", host.cpu, host.cpus)),
        ("KVM", shown.kvm().to_string()),
        ("Date", shown.began.to_string()),
        ("wisp", env!("CARGO_PKG_VERSION").to_string()),
        ("Image", shown.image.to_string()),
        ("Runs", format!("{}, each in a new instance", shown.report.rounds)),
        ("Type limits", limits.to_string()),
    ];
    page.push_str("<h2>Test environment</h2>\n<div class=\"scroll\"><table>\n");
    for (label, text) in rows {
        let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(label), escape(&text));
    }
    let _ = writeln!(
        page,
        "<tr><th>Command</th><td><code>{}</code></td></tr>\n</table></div>\n\
         <p class=\"soft\">Bars show medians. Lines show the 95% confidence interval of the median, or the range from \
         minimum to p95 with fewer than {MIN_VALUES} runs. Two types differ only if their intervals do not overlap. p95 is \
         the 95th percentile by nearest rank: with fewer than 20 runs, the maximum. Green marks the cheapest type that is \
         within {}% of the fastest, or that does not differ from it.</p>",
        escape(&shown.command_line.join(" ")),
        shown.within,
    );
}

#[cfg(test)]
mod tests {
    use super::super::shape::shape;
    use super::super::shown::tests::{report, shown};
    use super::*;
    use serde_json::Value;

    #[test]
    fn page_escapes_untrusted_text() {
        let report = report();
        let shown = shown(&report);
        let data = serde_json::to_string(&shape(&shown)).unwrap();
        let page = page(&shown, &data);
        for raw in ["A <fast>", "<no>", "<i>", "my <list>"] {
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
        assert!(page.contains("@media print") && page.contains("@media (max-width"));
    }

    #[test]
    fn page_starts_with_verdict() {
        let report = report();
        let page = page(&shown(&report), "{}");
        let body = page.split("<body>").nth(1).unwrap();
        assert!(body.trim_start().starts_with("<header class=\"verdict\">"), "{body}");
        let heading = body.split("<h1>").nth(1).unwrap().split("</h1>").next().unwrap();
        assert_eq!(heading, "t3.micro is the cheapest type that is fast enough");
    }
}
