//! `wisp bench`: compares instance types on this host.

mod chart;
mod html;
mod limits;
mod prices;
mod shape;
mod shown;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use self::prices::{Price, Prices};
use self::shown::Shown;
use super::output::{self, Output, Screen};
use super::wait;
use cloud::bench::comparison::compare;
use cloud::bench::measure::{BUILT_IN, COMMAND, Measure, chosen};
use cloud::bench::report::{Report, TypeReport};
use cloud::bench::schedule::Budget;
use cloud::bench::{self, BenchError, BenchProgress, BenchSpec};
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
/// Each type is launched several times to run workloads or a command, until the medians are precise or the time is used
/// up. The result names the cheapest type that is fast enough. For each figure, it says whether the type or this host is
/// the limit. The built-in workloads measure integer and floating-point speed on one vCPU and on all vCPUs, memory
/// bandwidth and latency, sequential and random disk access with 1 and 32 requests in flight, the network, launches and
/// boots.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp bench --types t3.micro,t3.small,m5.large
  wisp bench --types t3.nano,t2.nano --workloads cpu,disk-random --minutes 5
  wisp bench --types t3.small,c5.large --command 'make -C /src test' my-image
  wisp bench --types t3.micro,m5.large --html bench.html --json bench.json
  wisp bench --types t3.micro,m5.large --price t3.micro=0.0031 --within 10

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

    /// Maximum number of runs per type.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Maximum duration in minutes. The first run of each type always completes.
    #[arg(long, value_name = "M", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,

    /// Stop early when each median is known to within this percentage.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = parse_percent)]
    precision: f64,

    /// Duration of each workload in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    time: u64,

    /// Acceptable slowdown relative to the fastest type, in percent.
    #[arg(long, alias = "slowdown", value_name = "PERCENT", default_value_t = 25.0, value_parser = parse_percent)]
    within: f64,

    /// Comma-separated prices of types in dollars per hour, which override the list.
    #[arg(long = "price", value_name = "TYPE=DOLLARS", value_delimiter = ',')]
    price: Vec<Price>,

    /// CSV file of lines TYPE,DOLLARS [default: the embedded list of us-east-1].
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,

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

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse::<f64>().ok();
    percent
        .filter(|percent| (0.0..=100_000.0).contains(percent))
        .ok_or("it must be a percentage from 0 to 100000".into())
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    probe::kvm_access()?;
    let types = types(&args.types)?;
    let measures = measures(&args)?;
    let prices = Prices::new(&args.price, args.prices.as_deref())?;
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
        budget: Budget {
            runs: args.runs,
            time: Duration::from_secs(args.minutes * 60),
            precision: args.precision / 100.0,
        },
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
    let of_types: Vec<Option<f64>> = spec.types.iter().map(|of| prices.find(of.instance_type.name)).collect();
    let shown = Shown {
        report: &report,
        comparison: compare(&report, &of_types, args.within / 100.0),
        prices: of_types,
        price_list: prices.describe(),
        within: args.within,
        minutes: args.minutes,
        precision: args.precision,
        image: &spec.image.manifest.name,
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
    let measured = |of: &TypeReport| of.results.iter().any(|result| !result.samples.is_empty());
    let failed = |of: &TypeReport| {
        let of_command = of.results.iter().find(|result| result.measure.name == COMMAND.name);
        of_command.is_some_and(|result| result.not_measured.is_some()) || measured(of) && of.failed.is_some()
    };
    let good = report.types.iter().any(measured) && !report.types.iter().any(failed);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(home: &Home, spec: &BenchSpec) -> Result<Report, BenchError> {
    let spinner = wait::spinner("Starting");
    let result = bench::run(home, spec, &mut |BenchProgress { run, instance_type, what }| {
        let runs = spec.budget.runs;
        let run = if run == 0 { String::new() } else { format!("run {run} of at most {runs}, ") };
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

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["bench"], words].concat()).map(|line| line.args)
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
            &["--types", "t3.micro", "--minutes", "0"],
            &["--types", "t3.micro", "--within", "-1"],
            &["--types", "t3.micro", "--precision", "x"],
            &["--types", "t3.micro", "--price", "t3.micro"],
            &["--types", "t3.micro", "--price", "t3.micro=cheap"],
            &["--types", "t3.micro", "--price", "t9.micro=1"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        let args = parse(&["--types", "t3.micro", "--slowdown", "10%", "--price", "t3.micro=1,m5.large=2.5"]).unwrap();
        assert_eq!((args.within, args.price[1].dollars), (10.0, 2.5));
        assert!(check_directory(Path::new("/no/such/directory/file")).is_err());
        assert!(check_directory(Path::new("file")).is_ok());
    }
}
