//! Compares the figures of a bench side by side.

use super::bound::{Bound, judge};
use super::choice::{Difference, Standing, cheapest, order, standings};
use super::measure::{About, COMMAND, Measure};
use super::report::{MeasureReport, Report};
use super::statistics::Summary;

#[derive(Debug)]
pub struct Comparison<'a> {
    pub measures: Vec<Compared<'a>>,
    /// Names of the measures that are considered in choosing the cheapest type.
    pub over: Vec<&'static str>,
    /// True if every type has a price. Otherwise, the smallest type is considered the cheapest.
    pub has_prices: bool,
    /// Index of the cheapest type that is fast enough in all measures of `over`.
    pub cheapest: Option<usize>,
    /// Measures of `over` in which the cheapest type may be too slow.
    pub doubts: Vec<Doubt>,
    /// True if there are several types, and no difference between them was found in any measure of `over`.
    pub no_difference: bool,
}

/// A measure in which a type may be too slow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Doubt {
    pub measure: &'static str,
    /// `None` if there were too few runs.
    pub largest_slowdown: Option<f64>,
}

#[derive(Debug)]
pub struct Compared<'a> {
    pub measure: &'static Measure,
    /// One entry per type, in order. Types that failed before they had a figure have none.
    pub entries: Vec<ComparisonRow<'a>>,
    /// Index of the cheapest type that is fast enough in this measure.
    pub cheapest: Option<usize>,
}

#[derive(Debug)]
pub struct ComparisonRow<'a> {
    /// Index of the instance type in the report.
    pub subject: usize,
    pub result: &'a MeasureReport,
    /// `None` if there are no figures.
    pub summary: Option<(Summary, Bound)>,
    /// Comparison with the fastest type.
    pub standing: Option<Standing>,
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
    let measures: Vec<(Compared, Vec<Standing>)> =
        (0..count).map(|index| compare_one(report, index, &by_price, within)).collect();
    let has_command = measures.iter().any(|(compared, _)| compared.measure.name == COMMAND.name);
    let counts = |measure: &Measure| match has_command {
        true => measure.name == COMMAND.name,
        // The start time of an instance depends mainly on this host, so it does not help in choosing a type.
        false => measure.about != About::Start,
    };
    let over: Vec<&(Compared, Vec<Standing>)> =
        measures.iter().filter(|(compared, standings)| counts(compared.measure) && !standings.is_empty()).collect();
    let all: Vec<Vec<Standing>> = over.iter().map(|(_, standings)| standings.clone()).collect();
    let cheapest = cheapest(&by_price, &all, within);
    Comparison {
        over: over.iter().map(|(compared, _)| compared.measure.name).collect(),
        has_prices,
        cheapest,
        doubts: cheapest.map_or_else(Vec::new, |subject| doubts(&over, subject, within)),
        no_difference: !all.is_empty() && all.iter().all(|standings| has_no_difference(standings)),
        measures: measures.into_iter().map(|(compared, _)| compared).collect(),
    }
}

fn has_no_difference(standings: &[Standing]) -> bool {
    standings.len() > 1 && standings.iter().all(|standing| standing.difference == Difference::NotFound)
}

/// Returns the measures in which a type may be slower than `within` allows.
fn doubts(over: &[&(Compared, Vec<Standing>)], subject: usize, within: f64) -> Vec<Doubt> {
    let doubt = |(compared, standings): &&(Compared, Vec<Standing>)| {
        let standing = standings.iter().find(|standing| standing.subject == subject)?;
        let doubt = Doubt { measure: compared.measure.name, largest_slowdown: standing.largest_slowdown };
        standing.is_uncertain(within).then_some(doubt)
    };
    over.iter().filter_map(doubt).collect()
}

fn compare_one<'a>(report: &'a Report, index: usize, by_price: &[usize], within: f64) -> (Compared<'a>, Vec<Standing>) {
    let measure = report.types[0].results[index].measure;
    let mut entries = Vec::new();
    let mut summaries = Vec::new();
    for (subject, of) in report.types.iter().enumerate() {
        let result = &of.results[index];
        let bound = |summary| {
            let bound = judge(measure, of.request.instance_type, &of.limits, &report.host, &result.samples);
            (summary, bound)
        };
        let summary = result.summary().map(bound);
        // If a measure failed in any run, it is not compared, even if other runs succeeded.
        if let (Some((summary, _)), None) = (&summary, &result.not_measured) {
            summaries.push((subject, *summary));
        }
        if summary.is_some() || of.failed.is_none() {
            entries.push(ComparisonRow { subject, result, summary, standing: None });
        }
    }
    let standings = standings(measure, &summaries);
    for entry in &mut entries {
        entry.standing = standings.iter().find(|standing| standing.subject == entry.subject).copied();
    }
    let cheapest = cheapest(by_price, std::slice::from_ref(&standings), within);
    (Compared { measure, entries, cheapest }, standings)
}

#[cfg(test)]
mod tests {
    use super::super::bound::{HostFacts, Limits, Observed, Sample};
    use super::super::measure::chosen;
    use super::super::report::TypeReport;
    use super::super::schedule::Stop;
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
            pinning: None,
            results: results.clone(),
        };
        let host = HostFacts { cpu: "a processor".into(), cpus: 2, software_kvm: false, cache: None };
        let types = types.iter().map(of).collect();
        Report { host, types, rounds: 1, stop: Stop::Runs, is_concurrent: true }
    }

    #[test]
    fn choice_uses_all_measures_except_starts_or_only_command() {
        let [rate, boot] = ["integer-one", "boot"].map(|name| chosen([name]).unwrap()[0]);
        let of = |figure, boot_figure| vec![result(rate, &[figure]), result(boot, &[boot_figure])];
        let two = report(&[("t3.micro", of(95.0, 9.0)), ("m5.large", of(100.0, 1.0))]);
        let comparison = compare(&two, &[], 0.25);
        assert_eq!((comparison.over.clone(), comparison.cheapest), (vec!["integer-one"], Some(0)));
        assert_eq!(comparison.measures[1].cheapest, Some(1));
        let standing = comparison.measures[1].entries[0].standing.unwrap();
        assert!((standing.slowdown - 8.0).abs() < 1e-9);
        assert_eq!(comparison.doubts, [Doubt { measure: "integer-one", largest_slowdown: None }]);
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
        let slowdown = |index: usize| entries[index].standing.map(|standing| standing.slowdown);
        assert_eq!((entries.len(), slowdown(0), slowdown(1)), (2, None, Some(0.0)));
        assert_eq!(compare(&report(&[]), &[], 0.25).cheapest, None);
    }

    #[test]
    fn overlapping_intervals_are_no_difference() {
        let rate = chosen(["integer-one"]).unwrap()[0];
        let same = [
            ("t3.micro", vec![result(rate, &[100.0, 90.0, 120.0, 95.0, 105.0])]),
            ("t3a.micro", vec![result(rate, &[80.0, 101.0, 85.0, 90.0, 99.0])]),
        ];
        let same = report(&same);
        let comparison = compare(&same, &[Some(2.0), Some(1.0)], 0.05);
        // The cheaper type is 10% slower by its median, but this may be chance.
        assert!(comparison.no_difference && comparison.cheapest == Some(1));
        assert_eq!(comparison.doubts.len(), 1);
        assert!(comparison.doubts[0].largest_slowdown.unwrap() > 0.4);

        let other = [("t3.micro", vec![result(rate, &[100.0; 5])]), ("m5.large", vec![result(rate, &[200.0; 5])])];
        let other = report(&other);
        let comparison = compare(&other, &[], 0.25);
        assert!(!comparison.no_difference && comparison.cheapest == Some(1) && comparison.doubts.is_empty());
    }
}
