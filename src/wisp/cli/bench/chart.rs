//! Renders a measure as a chart: a bar for each type's median, with a whisker for its interval.
//!
//! The chart is narrow enough for a phone and uses the colors of the HTML page.

use std::fmt::Write as _;

const WIDTH: f64 = 360.0;
/// The height of a row: a bar and the text above it.
const ROW: f64 = 38.0;
const BAR: f64 = 12.0;
/// The offset of a bar from the top of its row.
const DOWN: f64 = 18.0;

/// A bar of the chart.
pub struct Bar<'a> {
    /// The text above the bar: the label on the left, the value on the right.
    pub label: &'a str,
    pub value: String,
    pub median: f64,
    /// The ends of the whisker.
    pub low: f64,
    pub high: f64,
    /// True to highlight the bar.
    pub is_chosen: bool,
}

/// Renders the chart as SVG.
pub fn chart(title: &str, bars: &[Bar]) -> String {
    let height = ROW * bars.len() as f64;
    let most = bars.iter().map(|bar| bar.high.max(bar.median)).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| (value / most).clamp(0.0, 1.0) * (WIDTH - 2.0) + 1.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        escape(title)
    );
    for (index, bar) in bars.iter().enumerate() {
        let top = ROW * index as f64;
        let (y, middle) = (top + DOWN, top + DOWN + BAR / 2.0);
        let (from, median, to) = (at(bar.low), at(bar.median), at(bar.high));
        let class = if bar.is_chosen { "bar chosen" } else { "bar" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"1\" y=\"{:.1}\">{}</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect class=\"{class}\" x=\"1\" y=\"{y:.1}\" width=\"{median:.1}\" height=\"{BAR}\" rx=\"2\"/>\n\
             <path class=\"whisker\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {:.1}v{:.1}M{to:.1} {:.1}v{:.1}\"/>",
            top + 13.0,
            escape(bar.label),
            WIDTH - 1.0,
            top + 13.0,
            escape(&bar.value),
            y + 2.0,
            BAR - 4.0,
            y + 2.0,
            BAR - 4.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Escapes text for HTML content and attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_length_is_proportional_to_median() {
        let bar = |median, high| Bar { label: "<a>", value: "1".into(), median, low: 0.0, high, is_chosen: false };
        let svg = chart("t", &[bar(50.0, 100.0), bar(100.0, 100.0), bar(0.0, 0.0)]);
        assert!(svg.contains("width=\"180.0\"") && svg.contains("width=\"359.0\"") && svg.contains("width=\"1.0\""));
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("NaN"), "{svg}");
        assert!(!chart("none", &[bar(0.0, 0.0)]).contains("NaN"));
    }
}
