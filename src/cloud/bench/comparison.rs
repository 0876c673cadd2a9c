//! Compares the figures of a bench side by side.

use super::bound::{Bound, judge};
use super::choice::{Standing, cheapest, order, slowdowns};
use super::measure::{About, COMMAND, Measure};
use super::statistics::Summary;
use super::{MeasureReport, Report};

#[derive(Debug)]
pub struct Comparison<'a> {
    pub measures: Vec<Compared<'a>>,
    /// Names of the measures that are considered in choosing the cheapest type.
    pub over: Vec<&'static str>,
    /// True if every type has a price. Otherwise, the smallest type is considered the cheapest.
    pub has_prices: bool,
    /// Index of the cheapest type whose slowdown is acceptable in all measures of `over`.
    pub cheapest: Option<usize>,
}

#[derive(Debug)]
pub struct Compared<'a> {
    pub measure: &'static Measure,
    /// One entry per type, in order. Types that failed before they had a figure have none.
    pub entries: Vec<ComparisonRow<'a>>,
    /// Index of the cheapest type whose slowdown is acceptable in this measure.
    pub cheapest: Option<usize>,
}

#[derive(Debug)]
pub struct ComparisonRow<'a> {
    /// Index of the instance type in the report.
    pub subject: usize,
    pub result: &'a MeasureReport,
    /// `None` if there are no figures.
    pub summary: Option<(Summary, Bound)>,
    /// Relative to the fastest type: 0.25 is a quarter slower.
    pub slowdown: Option<f64>,
}

/// Compares the types. `prices` has one entry per type, or is empty. `within` is the maximum acceptable slowdown.
pub fn compare<'a>(report: &'a Report, prices: &[Option<f64>], within: f64) -> Comparison<'a> {
    let has_prices = prices.len() == report.types.len() && prices.iter().all(Option::is_some);
    let mut by_price: Vec<usize> = (0..report.types.len()).collect();
    let key = |index: usize| {
        let price = if has_prices { prices[index] } else { None };
        (report.types[index].request.instance_type, price)
    };
    by_price.sort_by(|one, other| order(key(*one), key(*other)));
    let count = report.types.first().map_or(0, |first| first.results.len());
    let measures: Vec<(Compared, Vec<(usize, f64)>)> =
        (0..count).map(|index| compare_one(report, index, &by_price, within)).collect();
    let has_command = measures.iter().any(|(compared, _)| compared.measure.name == COMMAND.name);
    let counts = |measure: &Measure| match has_command {
        true => measure.name == COMMAND.name,
        // The start time of an instance depends mainly on this host, so it does not help in choosing a type.
        false => measure.about != About::Start,
    };
    let over: Vec<&(Compared, Vec<(usize, f64)>)> =
        measures.iter().filter(|(compared, slowdowns)| counts(compared.measure) && !slowdowns.is_empty()).collect();
    let all: Vec<Vec<(usize, f64)>> = over.iter().map(|(_, slowdowns)| slowdowns.clone()).collect();
    Comparison {
        over: over.iter().map(|(compared, _)| compared.measure.name).collect(),
        has_prices,
        cheapest: cheapest(&by_price, &all, within),
        measures: measures.into_iter().map(|(compared, _)| compared).collect(),
    }
}

fn compare_one<'a>(
    report: &'a Report,
    index: usize,
    by_price: &[usize],
    within: f64,
) -> (Compared<'a>, Vec<(usize, f64)>) {
    let measure = report.types[0].results[index].measure;
    let mut entries = Vec::new();
    let mut standings = Vec::new();
    for (subject, of) in report.types.iter().enumerate() {
        let result = &of.results[index];
        let bound = |summary| {
            let bound = judge(measure, of.request.instance_type, &of.limits, &report.host, &result.samples);
            (summary, bound)
        };
        let summary = result.summary().map(bound);
        // If a measure failed in any run, it has no slowdown, even if other runs succeeded.
        if let (Some((summary, _)), None) = (&summary, &result.not_measured) {
            standings.push(Standing { subject, median: summary.median });
        }
        if summary.is_some() || of.failed.is_none() {
            entries.push(ComparisonRow { subject, result, summary, slowdown: None });
        }
    }
    let slowdowns = slowdowns(measure, &standings);
    for entry in &mut entries {
        entry.slowdown = slowdowns.iter().find(|(subject, _)| *subject == entry.subject).map(|(_, slowdown)| *slowdown);
    }
    let cheapest = cheapest(by_price, std::slice::from_ref(&slowdowns), within);
    (Compared { measure, entries, cheapest }, slowdowns)
}

#[cfg(test)]
mod tests {
    use super::super::TypeReport;
    use super::super::bound::{HostFacts, Limits, Observed, Sample};
    use super::super::measure::chosen;
    use super::*;
    use ec2::capacity::InstanceSize;
    use ec2::catalog;

    fn result(measure: &'static Measure, figures: &[f64]) -> MeasureReport {
        let observed = Observed { cpu_share: 1.0, ..Observed::default() };
        let samples = figures.iter().map(|figure| Sample { figure: *figure, bytes: 0, observed }).collect();
        MeasureReport { measure, samples, not_measured: None }
    }

    fn report(types: &[(&str, Vec<MeasureReport>)]) -> Report {
        let of = |(name, results): &(&str, Vec<MeasureReport>)| TypeReport {
            request: InstanceSize::of_type(catalog::find(name).unwrap()),
            failed: None,
            limits: Limits::default(),
            results: results.clone(),
        };
        let host = HostFacts { cpu: "a processor".into(), cpus: 2, software_kvm: false, cache: None };
        Report { host, types: types.iter().map(of).collect() }
    }

    #[test]
    fn choice_uses_all_measures_except_starts_or_only_command() {
        let [rate, boot] = ["integer-one", "boot"].map(|name| chosen([name]).unwrap()[0]);
        let of = |figure, boot_figure| vec![result(rate, &[figure]), result(boot, &[boot_figure])];
        let two = report(&[("t3.micro", of(95.0, 9.0)), ("m5.large", of(100.0, 1.0))]);
        let comparison = compare(&two, &[], 0.25);
        assert_eq!((comparison.over.clone(), comparison.cheapest), (vec!["integer-one"], Some(0)));
        assert_eq!(comparison.measures[1].cheapest, Some(1));
        assert!((comparison.measures[1].entries[0].slowdown.unwrap() - 8.0).abs() < 1e-9);
        let prices = compare(&two, &[Some(2.0), Some(1.0)], 0.25);
        assert!(prices.has_prices && prices.cheapest == Some(1));

        let of = |rate_figure, seconds| vec![result(rate, &[rate_figure]), result(&COMMAND, &[seconds])];
        let two = report(&[("t3.micro", of(95.0, 2.0)), ("m5.large", of(10.0, 1.0))]);
        let comparison = compare(&two, &[], 0.25);
        assert_eq!((comparison.over.clone(), comparison.cheapest), (vec!["command"], Some(1)));
    }

    #[test]
    fn failed_type_is_not_chosen_and_refused_type_has_no_entry() {
        let rate = chosen(["integer-one"]).unwrap()[0];
        let mut failed = result(rate, &[200.0]);
        failed.not_measured = Some("exit code 1".into());
        let mut three = report(&[
            ("t3.nano", vec![failed]),
            ("t3.micro", vec![result(rate, &[100.0])]),
            ("m5.large", vec![result(rate, &[])]),
        ]);
        three.types[2].failed = Some("no room".into());
        let comparison = compare(&three, &[], 0.25);
        assert_eq!(comparison.cheapest, Some(1));
        let entries = &comparison.measures[0].entries;
        assert_eq!((entries.len(), entries[0].slowdown, entries[1].slowdown), (2, None, Some(0.0)));
        assert_eq!(compare(&report(&[]), &[], 0.25).cheapest, None);
    }
}
