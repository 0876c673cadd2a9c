//! The results of a bench and its options, for all output formats, and the sentences that they share.

use cloud::bench::choice::{Difference, Standing};
use cloud::bench::comparison::{Comparison, ComparisonRow};
use cloud::bench::report::{MeasureReport, Report, TypeReport};
use cloud::bench::schedule::Stop;
use cloud::bench::statistics::MIN_VALUES;
use ec2::api::Timestamp;

pub struct Shown<'a> {
    pub report: &'a Report,
    pub comparison: Comparison<'a>,
    /// The price of each type in dollars per hour, if known.
    pub prices: Vec<Option<f64>>,
    /// The source of the prices.
    pub price_list: String,
    /// The acceptable slowdown in percent.
    pub within: f64,
    /// The maximum duration.
    pub minutes: u64,
    /// The precision in percent at which the measurements stop.
    pub precision: f64,
    pub image: &'a str,
    pub limited: bool,
    /// The start time.
    pub began: Timestamp,
    /// The words of the command line.
    pub command_line: Vec<String>,
}

impl Shown<'_> {
    pub fn name(&self, subject: usize) -> &'static str {
        self.report.types[subject].request.instance_type.name
    }

    pub fn kvm(&self) -> &'static str {
        if self.report.host.software_kvm { "software KVM, which emulates guest kernels" } else { "hardware KVM" }
    }

    pub fn price(&self, subject: usize) -> String {
        self.prices.get(subject).copied().flatten().map_or_else(|| "-".into(), |price| price.to_string())
    }

    /// Returns a sentence that names the cheapest type that is fast enough, if any.
    pub fn choice(&self) -> String {
        let Comparison { over, has_prices, cheapest, .. } = &self.comparison;
        let what = match over.as_slice() {
            [] => return "No type was chosen, because there are no measurements to compare.".into(),
            [only] => format!("for {only}"),
            several => format!("in all {} measures", several.len()),
        };
        let within = format!("within {}% of the fastest {what}", self.within);
        match cheapest {
            Some(subject) if *has_prices => {
                let (name, price) = (self.name(*subject), self.price(*subject));
                format!("The cheapest type {within} is {name}, at ${price} per hour.")
            }
            Some(subject) => {
                format!("The cheapest type {within} is {} (ordered by size, without prices).", self.name(*subject))
            }
            None => format!("No type is {within}."),
        }
    }

    /// Returns sentences that qualify the choice.
    pub fn caveats(&self) -> Vec<String> {
        let Comparison { cheapest, doubts, over, no_difference, .. } = &self.comparison;
        let mut caveats = Vec::new();
        if *no_difference {
            let what =
                if let [only] = over.as_slice() { format!("in {only}") } else { "in any of these measures".into() };
            caveats.push(format!("No difference found between the types {what}."));
        }
        let largest = doubts.iter().filter_map(|doubt| Some((doubt.measure, doubt.largest_slowdown?)));
        let largest = largest.max_by(|one, other| one.1.total_cmp(&other.1));
        if doubts.iter().any(|doubt| doubt.largest_slowdown.is_none()) {
            caveats.push(format!("This is uncertain: with fewer than {MIN_VALUES} runs, differences may be chance."));
        } else if let (Some((measure, slowdown)), Some(subject)) = (largest, cheapest) {
            let (name, percent) = (self.name(*subject), slowdown * 100.0);
            caveats.push(format!(
                "This is uncertain: {name} may be up to {percent:.0}% slower in {measure}. More runs narrow the interval."
            ));
        }
        caveats
    }

    /// Returns a sentence about each measure of a type that failed, and each type that was not fully measured.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for of in &self.report.types {
            let name = of.request.instance_type.name;
            failures.extend(of.failed.as_ref().map(|why| format!("{name} was not fully measured: {why}")));
            let failed = |result: &MeasureReport| {
                let why = result.not_measured.as_ref()?;
                Some(format!("{} was not measured on {name}: {why}", result.measure.name))
            };
            failures.extend(of.results.iter().filter_map(failed));
        }
        failures
    }

    /// Returns notes about the runs and about the CPU credits of burstable types.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![self.stop()];
        let measured = self.report.types.iter().filter(|of| of.pinning.is_some()).count();
        if measured > 1 {
            notes.push(match self.report.is_concurrent {
                true => "Guests of all types ran at the same time and took turns.".into(),
                false => "Guests of different types ran one after another: this host has too little memory.".into(),
            });
        }
        notes.extend(self.pinned());
        notes.extend(self.report.types.iter().filter_map(not_pinned));
        let credits: Vec<String> = self.report.types.iter().filter_map(credits).collect();
        if !credits.is_empty() {
            notes.push(format!("Each run started with the CPU credits of a new launch ({}).", credits.join("; ")));
        }
        notes
    }

    fn stop(&self) -> String {
        let Report { rounds, stop, .. } = self.report;
        let runs = if *rounds == 1 { "1 run".into() } else { format!("{rounds} runs") };
        match stop {
            Stop::Complete => {
                format!("Stopped after {runs}: no measure needs more for a precision of {}%.", self.precision)
            }
            Stop::Runs => format!("Stopped after {runs}, the maximum."),
            Stop::Time => format!("Stopped after {runs}: another would exceed {} min.", self.minutes),
        }
    }

    /// Returns a sentence about the CPUs of all pinned vCPUs. Types with fewer vCPUs use the first ones.
    fn pinned(&self) -> Option<String> {
        let pinned = self.report.types.iter().filter_map(|of| of.pinning.as_ref()?.as_ref().ok());
        let cpus = pinned.max_by_key(|cpus| cpus.len())?;
        let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        let noun = if cpus.len() == 1 { "CPU" } else { "CPUs" };
        Some(format!("vCPUs were pinned to {noun} {}, the same for all types.", cpus.join(", ")))
    }
}

fn not_pinned(of: &TypeReport) -> Option<String> {
    let why = of.pinning.as_ref()?.as_ref().err()?;
    Some(format!("The vCPUs of {} were not pinned: {why}.", of.request.instance_type.name))
}

/// Describes the CPU credits of a burstable type.
fn credits(of: &TypeReport) -> Option<String> {
    let (name, credits, mode) = (of.request.instance_type.name, of.request.instance_type.credits?, of.limits.credits?);
    Some(format!("{name}: {mode} mode, baseline {}% of each vCPU", credits.baseline_percent))
}

/// Compares a type with the fastest type, in a few words.
pub fn slower_by(entry: &ComparisonRow) -> String {
    match entry.standing {
        None => "-".into(),
        Some(Standing { difference: Difference::NotFound, .. }) => "no difference found".into(),
        Some(Standing { slowdown: 0.0, .. }) => "fastest".into(),
        Some(Standing { slowdown, .. }) => format!("{:.0}%", slowdown * 100.0),
    }
}

/// Formats a figure with about three significant digits.
pub fn figure(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use cloud::bench::bound::{HostFacts, Limits, Observed, Sample};
    use cloud::bench::comparison::compare;
    use cloud::bench::measure::{COMMAND, Measure, chosen};
    use ec2::capacity::InstanceSize;
    use ec2::catalog;
    use ec2::credits::CreditMode;

    pub fn samples(figures: &[f64]) -> Vec<Sample> {
        let observed = Observed { cpu_share: 1.0, ..Observed::default() };
        figures.iter().map(|figure| Sample { figure: *figure, bytes: 0, observed }).collect()
    }

    fn result(measure: &'static Measure, figures: &[f64]) -> MeasureReport {
        MeasureReport { measure, samples: samples(figures), not_measured: None }
    }

    /// Returns a report with two types that were measured and one that failed to start.
    pub fn report() -> Report {
        let integer = chosen(["integer-one"]).unwrap()[0];
        let of = |name: &str, results: Vec<MeasureReport>| TypeReport {
            request: InstanceSize::of_type(catalog::find(name).unwrap()),
            failed: None,
            limits: Limits::default(),
            pinning: Some(Ok(vec![0, 1])),
            results,
        };
        let micro = vec![result(integer, &[100.0, 90.0, 110.0, 95.0, 105.0]), result(&COMMAND, &[2.0, 2.5, 2.25])];
        let mut types = vec![
            of("t3.micro", micro),
            of("m5.large", vec![result(integer, &[200.0, 190.0, 210.0, 195.0, 205.0]), result(&COMMAND, &[])]),
            of("m5.24xlarge", vec![result(integer, &[]), result(&COMMAND, &[])]),
        ];
        types[1].results[1].not_measured = Some("exit code 3: <no> & \"such\" file".into());
        types[2].failed = Some("no room".into());
        types[2].pinning = None;
        let host = HostFacts { cpu: "A <fast> processor".into(), cpus: 2, software_kvm: true, cache: Some(1 << 20) };
        Report { host, types, rounds: 5, stop: Stop::Time, is_concurrent: true }
    }

    pub fn shown(report: &Report) -> Shown<'_> {
        let prices = vec![Some(0.0104), Some(0.096), Some(4.608)];
        Shown {
            report,
            comparison: compare(report, &prices, 0.25),
            prices,
            price_list: "my <list>".into(),
            within: 25.0,
            minutes: 10,
            precision: 5.0,
            image: "tiny",
            limited: true,
            began: Timestamp::from_seconds(1_767_323_045),
            command_line: ["wisp", "bench", "--command", "</script><i>"].map(String::from).into(),
        }
    }

    #[test]
    fn choice_names_cheapest_type_and_its_price() {
        let report = report();
        let mut shown = shown(&report);
        assert_eq!(
            shown.choice(),
            "The cheapest type within 25% of the fastest for command is t3.micro, at $0.0104 per hour."
        );
        shown.comparison = compare(&report, &[], 0.25);
        assert_eq!(
            shown.choice(),
            "The cheapest type within 25% of the fastest for command is t3.micro (ordered by size, without prices)."
        );
    }

    #[test]
    fn caveats_name_uncertainty_and_missing_difference() {
        let mut report = report();
        let few = ["This is uncertain: with fewer than 5 runs, differences may be chance."];
        assert_eq!(shown(&report).caveats(), few);
        report.types.iter_mut().for_each(|of| of.results.truncate(1));
        assert!(shown(&report).caveats().is_empty());
        report.types[1].results[0].samples = samples(&[100.0, 70.0, 120.0, 104.0, 105.0]);
        report.types[0].results[0].samples = samples(&[80.0, 105.0, 110.0, 95.0, 99.0]);
        assert_eq!(
            shown(&report).caveats(),
            [
                "No difference found between the types in integer-one.",
                "This is uncertain: t3.micro may be up to 50% slower in integer-one. More runs narrow the interval."
            ]
        );
        assert_eq!(slower_by(&shown(&report).comparison.measures[0].entries[0]), "no difference found");
    }

    #[test]
    fn notes_name_reason_to_stop_and_cpus() {
        let mut report = report();
        let shared = "Guests of all types ran at the same time and took turns.";
        let pinned = "vCPUs were pinned to CPUs 0, 1, the same for all types.";
        let stopped = "Stopped after 5 runs: another would exceed 10 min.";
        assert_eq!(shown(&report).notes(), [stopped, shared, pinned]);
        report.types[1].pinning = Some(Err("usable CPUs: 1, vCPUs: 2".into()));
        report.types[0].limits.credits = Some(CreditMode::Unlimited);
        let not_pinned = "The vCPUs of m5.large were not pinned: usable CPUs: 1, vCPUs: 2.";
        let credits = "Each run started with the CPU credits of a new launch (t3.micro: unlimited mode, baseline 10% of \
                       each vCPU).";
        assert_eq!(shown(&report).notes()[3..], [not_pinned, credits]);
    }

    #[test]
    fn figures_have_about_three_digits() {
        assert_eq!([1234.5, 12.345, 1.2345, 0.012345].map(figure), ["1234", "12.3", "1.23", "0.0123"]);
    }
}
