//! `wisp bench`: compares instance types on this host.

mod chart;
mod html;
mod shape;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;

use super::output::{self, Output, Screen};
use super::wait;
use cloud::bench::comparison::{Comparison, compare};
use cloud::bench::measure::{BUILT_IN, COMMAND, Measure, chosen};
use cloud::bench::{self, BenchError, BenchProgress, BenchSpec, Report};
use ec2::api::Timestamp;
use ec2::capacity::InstanceSize;
use ec2::network::NetworkMode;
use ec2::{Ec2Error, catalog};
use node::home::Home;
use node::image::Image;
use node::local;
use node::probe;

/// Compare instance types on this host.
///
/// Each type is launched several times to run workloads or a command. The result names the cheapest type that is fast
/// enough. For each figure, it says whether the type or this host is the limit. The built-in workloads measure integer
/// and floating-point speed on one vCPU and on all vCPUs, memory bandwidth and latency, sequential and random disk
/// access with 1 and 32 requests in flight, the network, launches and boots.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp bench --types t3.micro,t3.small,m5.large
  wisp bench --types t3.nano,t2.nano --workloads cpu,disk-random --runs 3
  wisp bench --types t3.small,c5.large --command 'make -C /src test' my-image
  wisp bench --types t3.micro,m5.large --html bench.html --json bench.json
  wisp bench --types t3.micro,m5.large --price t3.micro=0.0104,m5.large=0.096 --within 10

Workloads:
  integer-one, integer-all, float-one, float-all (together: cpu)
  memory-bandwidth, memory-latency
  disk-read-1, disk-read-32, disk-write-1, disk-write-32
  disk-random-read-1, disk-random-read-32
  disk-random-write-1, disk-random-write-32
  network-throughput, network-latency, warm-launch, boot
A prefix, such as disk, selects every workload that starts with it.")]
pub struct Args {
    /// Image name or ID, or bundle directory [default: tiny, the embedded image].
    #[arg(value_name = "IMAGE")]
    image: Option<String>,

    /// Comma-separated instance types (see `wisp types`).
    #[arg(long, value_name = "TYPES", value_delimiter = ',', required = true)]
    types: Vec<String>,

    /// Measure this shell command in the guest, instead of the built-in workloads.
    #[arg(long, value_name = "CMD")]
    command: Option<String>,

    /// Comma-separated built-in workloads [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    workloads: Vec<String>,

    /// Number of runs per type.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,

    /// Duration of each workload in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    time: u64,

    /// Acceptable slowdown relative to the fastest type, in percent.
    #[arg(long, alias = "slowdown", value_name = "PERCENT", default_value_t = 25.0, value_parser = parse_percent)]
    within: f64,

    /// Comma-separated prices of types, in any unit. Unless every type has a price, the smallest type is considered the
    /// cheapest.
    #[arg(long = "price", value_name = "TYPE=AMOUNT", value_delimiter = ',')]
    prices: Vec<Price>,

    /// Also write the result to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Also write the result to a file, as an HTML page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Do not enforce the instance types' CPU, disk and network limits.
    #[arg(long)]
    no_limits: bool,

    /// Allow an instance with more vCPUs than this host has CPUs.
    #[arg(long)]
    overcommit: bool,

    /// Network mode: user, none, or auto (user if this host supports it, else none).
    #[arg(long, value_name = "MODE", default_value = "auto")]
    network: NetworkMode,

    /// Timeout for a guest's boot, in seconds [default: 60, or 600 on software KVM]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

/// The price of a type, written `TYPE=AMOUNT`.
#[derive(Debug, Clone, PartialEq)]
struct Price {
    instance_type: &'static str,
    amount: f64,
}

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Price, String> {
        let (name, amount) = text.split_once('=').ok_or("it must be TYPE=AMOUNT, such as t3.micro=0.0104")?;
        let instance_type = catalog::find(name).map_err(|error| error.to_string())?.name;
        let amount = amount.parse::<f64>().ok().filter(|amount| amount.is_finite() && *amount >= 0.0);
        Ok(Price { instance_type, amount: amount.ok_or("the amount must be a non-negative number")? })
    }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse::<f64>().ok();
    percent
        .filter(|percent| (0.0..=100_000.0).contains(percent))
        .ok_or("it must be a percentage from 0 to 100000".into())
}

/// The results of a bench and its options, for all output formats.
struct Shown<'a> {
    report: &'a Report,
    comparison: Comparison<'a>,
    /// The price of each type, if given.
    prices: Vec<Option<f64>>,
    /// The acceptable slowdown in percent.
    within: f64,
    image: &'a str,
    runs: u32,
    limited: bool,
    /// The start time.
    began: Timestamp,
    /// The words of the command line.
    command_line: Vec<String>,
}

impl Shown<'_> {
    fn name(&self, subject: usize) -> &'static str {
        self.report.types[subject].request.instance_type.name
    }

    fn kvm(&self) -> &'static str {
        if self.report.host.software_kvm { "software KVM, which emulates guest kernels" } else { "hardware KVM" }
    }

    /// Returns a sentence that names the cheapest type that is fast enough, if any.
    fn choice(&self) -> String {
        let Comparison { over, has_prices, cheapest, .. } = &self.comparison;
        let what = match over.as_slice() {
            [] => return "No type was chosen, because there are no measurements to compare.".into(),
            [only] => format!("for {only}"),
            several => format!("in all {} measures", several.len()),
        };
        let within = format!("within {}% of the fastest {what}", self.within);
        let order = if *has_prices { "ordered by price" } else { "ordered by size, without prices" };
        match cheapest {
            Some(subject) => format!("The cheapest type {within} is {} ({order}).", self.name(*subject)),
            None => format!("No type is {within}."),
        }
    }

    /// Returns a note about the baseline and CPU credits of each burstable type.
    fn notes(&self) -> Vec<String> {
        let note = |of: &bench::TypeReport| {
            let (name, credits, mode) =
                (of.request.instance_type.name, of.request.instance_type.credits?, of.limits.credits?);
            let baseline = credits.baseline_percent;
            Some(format!(
                "{name} has a baseline of {baseline}% of each vCPU and uses CPU credits above it ({mode} mode). Each \
                 run started with the CPU credits of a new launch.",
            ))
        };
        self.report.types.iter().filter_map(note).collect()
    }
}

/// Formats a figure with about three significant digits.
fn figure(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    probe::kvm_access()?;
    let types = types(&args.types)?;
    let measures = measures(&args)?;
    for file in [&args.json, &args.html].into_iter().flatten() {
        check_directory(file)?;
    }
    let home = Home::open()?;
    let image = image(&home, args.image.as_deref())?;
    let seconds = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let spec = BenchSpec {
        image,
        types,
        measures,
        command: args.command.clone(),
        runs: args.runs,
        target: Duration::from_millis(args.time),
        limited: !args.no_limits,
        overcommit: args.overcommit,
        network: args.network,
        boot_timeout: wait::boot_timeout(args.timeout),
    };
    let report = match measure(&home, &spec) {
        Ok(report) => report,
        Err(BenchError::Interrupted(signal)) => {
            output::say("Interrupted. All instances of the bench were terminated.");
            return Ok(ExitCode::from((128 + signal) as u8));
        }
        Err(error) => return Err(error.into()),
    };
    let price = |of: &InstanceSize| args.prices.iter().find(|price| price.instance_type == of.instance_type.name);
    let prices: Vec<Option<f64>> = spec.types.iter().map(|of| price(of).map(|price| price.amount)).collect();
    let shown = Shown {
        report: &report,
        comparison: compare(&report, &prices, args.within / 100.0),
        prices,
        within: args.within,
        image: &spec.image.manifest.name,
        runs: spec.runs,
        limited: spec.limited,
        began: Timestamp::from_seconds(seconds),
        command_line: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
    };
    show(&shown, &args, output)?;
    Ok(exit_code(&report))
}

fn show(shown: &Shown, args: &Args, output: Output) -> anyhow::Result<()> {
    let shape = shape::shape(shown);
    match output {
        Output::Json => output::print_json(&shape)?,
        Output::Table => output::print(&table::render(shown, Screen::stdout()))?,
    }
    if let Some(path) = &args.json {
        write(path, &serde_json::to_string_pretty(&shape)?)?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(shown, &serde_json::to_string(&shape)?))?;
    }
    Ok(())
}

/// Returns success if at least one type was measured, no measured type failed, and the command succeeded on each type.
fn exit_code(report: &Report) -> ExitCode {
    let measured = |of: &bench::TypeReport| of.results.iter().any(|result| !result.samples.is_empty());
    let failed = |of: &bench::TypeReport| {
        let of_command = of.results.iter().find(|result| result.measure.name == COMMAND.name);
        of_command.is_some_and(|result| result.not_measured.is_some()) || measured(of) && of.failed.is_some()
    };
    let good = report.types.iter().any(measured) && !report.types.iter().any(failed);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(home: &Home, spec: &BenchSpec) -> Result<Report, BenchError> {
    let spinner = wait::spinner("Starting");
    let result = bench::run(home, spec, &mut |BenchProgress { run, instance_type, what }| {
        let runs = spec.runs;
        let run = if run == 0 { String::new() } else { format!("run {run} of {runs}, ") };
        spinner.set_message(format!("{run}{instance_type}: {what}"));
    });
    spinner.finish_and_clear();
    result
}

/// Opens the image. Does not open the store for the embedded image and bundle directories.
fn image(home: &Home, reference: Option<&str>) -> anyhow::Result<Image> {
    match local::unregistered(home, reference)? {
        Some(image) => Ok(image),
        None => Ok(super::open_cloud()?.images().open(reference)?.1),
    }
}

/// Looks up the types, without duplicates.
fn types(names: &[String]) -> Result<Vec<InstanceSize>, Ec2Error> {
    let mut types: Vec<InstanceSize> = Vec::new();
    for name in names {
        let request = InstanceSize::of_type(catalog::find(name.trim())?);
        if !types.contains(&request) {
            types.push(request);
        }
    }
    Ok(types)
}

fn measures(args: &Args) -> anyhow::Result<Vec<&'static Measure>> {
    if args.workloads.is_empty() {
        return Ok(if args.command.is_some() { Vec::new() } else { BUILT_IN.iter().collect() });
    }
    chosen(args.workloads.iter().map(|name| name.trim())).or_else(|name| {
        let all: Vec<&str> = BUILT_IN.iter().map(|measure| measure.name).collect();
        bail!("unknown workload '{name}'; the workloads are: {}", all.join(", "))
    })
}

/// Checks that the file's directory exists, so that `wisp bench` fails before minutes of measurements, not after.
fn check_directory(file: &Path) -> anyhow::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if file.is_dir() || !dir.is_dir() {
        bail!(
            "cannot write {}: {}",
            file.display(),
            if file.is_dir() { "it is a directory" } else { "no such directory" }
        );
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    output::say(&format!("Wrote {}", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use cloud::bench::bound::{HostFacts, Limits, Observed, Sample};
    use cloud::bench::{MeasureReport, TypeReport};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["bench"], words].concat()).map(|line| line.args)
    }

    /// Returns a report with two types that were measured and one that failed to start.
    pub(super) fn report() -> Report {
        let integer = chosen(["integer-one"]).unwrap()[0];
        let result = |measure, figures: &[f64]| {
            let observed = Observed { cpu_share: 1.0, ..Observed::default() };
            let samples = figures.iter().map(|figure| Sample { figure: *figure, bytes: 0, observed }).collect();
            MeasureReport { measure, samples, not_measured: None }
        };
        let of = |name: &str, results: Vec<MeasureReport>| TypeReport {
            request: InstanceSize::of_type(catalog::find(name).unwrap()),
            failed: None,
            limits: Limits::default(),
            results,
        };
        let mut types = vec![
            of("t3.micro", vec![result(integer, &[100.0, 90.0, 110.0]), result(&COMMAND, &[2.0, 2.5, 2.25])]),
            of("m5.large", vec![result(integer, &[200.0]), result(&COMMAND, &[])]),
            of("m5.24xlarge", vec![result(integer, &[]), result(&COMMAND, &[])]),
        ];
        types[1].results[1].not_measured = Some("exit code 3: <no> & \"such\" file".into());
        types[2].failed = Some("no room".into());
        let host = HostFacts { cpu: "A <fast> processor".into(), cpus: 2, software_kvm: true, cache: Some(1 << 20) };
        Report { host, types }
    }

    pub(super) fn shown(report: &Report) -> Shown<'_> {
        Shown {
            report,
            comparison: compare(report, &[], 0.25),
            prices: vec![None; 3],
            within: 25.0,
            image: "tiny",
            runs: 3,
            limited: true,
            began: Timestamp::from_seconds(1_767_323_045),
            command_line: ["wisp", "bench", "--command", "</script><i>"].map(String::from).into(),
        }
    }

    #[test]
    fn measures_follow_command_and_workload_options() {
        let count = |words: &[&str]| measures(&parse(&[&["--types", "t3.micro"], words].concat()).unwrap());
        assert_eq!(count(&[]).unwrap().len(), BUILT_IN.len());
        assert_eq!(count(&["--command", "true"]).unwrap().len(), 0);
        assert_eq!(count(&["--command", "true", "--workloads", "cpu, boot"]).unwrap().len(), 5);
        assert!(count(&["--workloads", "gpu"]).unwrap_err().to_string().contains("unknown workload 'gpu'"));
    }

    #[test]
    fn duplicate_types_are_dropped_and_unknown_types_refused() {
        let names = |text: &str| types(&parse(&["--types", text]).unwrap().types);
        let taken: Vec<_> = names("t3.micro,m5.large, t3.micro").unwrap();
        assert_eq!(taken.iter().map(|of| of.instance_type.name).collect::<Vec<_>>(), ["t3.micro", "m5.large"]);
        assert!(names("t3.micr0").is_err());
    }

    #[test]
    fn invalid_options_are_refused() {
        for words in [
            &[][..],
            &["--types", "t3.micro", "--runs", "0"],
            &["--types", "t3.micro", "--within", "-1"],
            &["--types", "t3.micro", "--price", "t3.micro"],
            &["--types", "t3.micro", "--price", "t3.micro=cheap"],
            &["--types", "t3.micro", "--price", "t9.micro=1"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        let args = parse(&["--types", "t3.micro", "--slowdown", "10%", "--price", "t3.micro=1,m5.large=2.5"]).unwrap();
        assert_eq!((args.within, args.prices[1].amount), (10.0, 2.5));
        assert!(check_directory(Path::new("/no/such/directory/file")).is_err());
        assert!(check_directory(Path::new("file")).is_ok());
    }

    #[test]
    fn choice_names_cheapest_type() {
        let report = report();
        assert_eq!(
            shown(&report).choice(),
            "The cheapest type within 25% of the fastest for command is t3.micro (ordered by size, without prices)."
        );
    }

    #[test]
    fn figures_have_about_three_digits() {
        assert_eq!([1234.5, 12.345, 1.2345, 0.012345].map(figure), ["1234", "12.3", "1.23", "0.0123"]);
    }
}
