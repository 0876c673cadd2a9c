//! `wisp types`: lists instance types and whether they fit this host.

use std::process::ExitCode;

use serde::Serialize;

use super::output::{self, Align, Cell, Output, Screen, Table, Tone};
use ec2::api::instance_type::InstanceTypeInfo;
use ec2::capacity::{self, HostCapacity, InstanceSize, Lacking};
use ec2::catalog;
use ec2::instance_type::{EbsBandwidth, InstanceType, NotLaunchable};
use ec2::size::{MemorySize, approximate_mib};
use node::probe;

/// The minimum terminal width for full descriptions.
const WIDE: usize = 100;

/// List instance types and whether they fit this host.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp types                   all types, by family
  wisp types --fits            types that this host can run now
  wisp types c6i               a family
  wisp types compute           all families in a category
  wisp types c6i.2xlarge       a type, and what its name means")]
pub struct Args {
    /// Family (c6i), type (c6i.large) or category (compute) [default: all].
    #[arg(value_name = "FAMILY|TYPE")]
    pub selection: Option<String>,

    /// Show only types that fit this host now.
    #[arg(long)]
    pub fits: bool,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let host = probe::resources();
    let mut types = match &args.selection {
        Some(word) => catalog::select(word)?,
        None => catalog::all().iter().collect(),
    };
    let is_single = matches!(types.as_slice(), [only] if args.selection.as_deref() == Some(only.name));
    if args.fits {
        types.retain(|candidate| verdict(candidate, host).is_ok());
    }
    match (output, types.as_slice()) {
        (Output::Json, _) => output::print_json(&Listing::new(&types, host))?,
        (Output::Table, [single]) if is_single => {
            output::print(&render_one(single, host, Screen::stdout()))?;
        }
        (Output::Table, _) => {
            output::print(&render_all(&types, host, Screen::stdout()))?;
        }
    }
    if output == Output::Table {
        suggest_next(args, &types, host);
    }
    Ok(ExitCode::SUCCESS)
}

fn suggest_next(args: &Args, types: &[&'static InstanceType], host: HostCapacity) {
    let fitting = types.iter().find(|candidate| verdict(candidate, host).is_ok());
    match fitting {
        Some(fitting) if args.fits || args.selection.is_some() => {
            output::next(&format!("run --type {}", fitting.name));
        }
        Some(_) => output::next("types --fits"),
        None if args.fits && args.selection.is_none() => output::next("doctor"),
        None => output::next("types --fits"),
    }
}

/// The reason why a type does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misfit {
    Never(NotLaunchable),
    Here(Lacking),
}

fn verdict(candidate: &'static InstanceType, host: HostCapacity) -> Result<(), Misfit> {
    candidate.launchable().map_err(Misfit::Never)?;
    match capacity::lacking(&InstanceSize::of_type(candidate), host, false) {
        None => Ok(()),
        Some(lacking) => Err(Misfit::Here(lacking)),
    }
}

impl Misfit {
    /// Returns the shortest form of the reason, for a narrow table.
    fn brief(self) -> &'static str {
        match self {
            Misfit::Never(NotLaunchable::BareMetal) => "metal",
            Misfit::Never(reason) => reason.brief(),
            Misfit::Here(Lacking::Memory) => "memory",
            Misfit::Here(_) => "CPUs",
        }
    }

    /// Returns the reason in a few words, for a wide table.
    fn clause(self) -> &'static str {
        match self {
            Misfit::Never(reason) => reason.brief(),
            Misfit::Here(Lacking::Vmm) => "more than 64 vCPUs",
            Misfit::Here(Lacking::Cpus) => "short of CPUs",
            Misfit::Here(Lacking::Memory) => "short of memory",
            Misfit::Here(Lacking::CpusAndMemory) => "short of CPUs and memory",
        }
    }

    /// Returns the reason with its numbers, for a single type.
    fn sentence(self, host: HostCapacity) -> String {
        match self {
            Misfit::Never(reason) => reason.to_string(),
            Misfit::Here(Lacking::Vmm) => {
                format!("a guest can have at most {} vCPUs", capacity::MAX_VCPUS)
            }
            Misfit::Here(_) => format!("this host has {}", free(host)),
        }
    }
}

/// Formats the host's capacity: `2 CPUs, 23.1 GiB free`.
fn free(host: HostCapacity) -> String {
    let cpus = output::count(host.cpus as usize, "CPU");
    format!("{cpus}, {} free", approximate_mib(host.memory_mib))
}

/// Renders all types, grouped by category and family.
fn render_all(types: &[&'static InstanceType], host: HostCapacity, screen: Screen) -> String {
    let mut lines = Vec::new();
    for category in types.chunk_by(|a, b| a.category == b.category) {
        let meaning = category[0].category;
        let title = screen.paint(Tone::Strong, &meaning.title().to_uppercase());
        lines.push(format!("{title}  {}", screen.paint(Tone::Quiet, meaning.explanation())));
        // One table per category, so that columns align between families.
        let mut rows = table(category, host, screen).lines().into_iter();
        lines.extend(rows.next());
        for family in category.chunk_by(|a, b| a.family() == b.family()) {
            lines.push(family_line(family[0], screen));
            lines.extend(rows.by_ref().take(family.len()));
        }
        lines.push(String::new());
    }
    lines.push(summary(types, host));
    lines.join("\n")
}

/// Formats a family: `c6i  sixth generation, Intel`. The category is printed above.
fn family_line(of: &InstanceType, screen: Screen) -> String {
    let reading = of.parts.family_reading();
    let (_, reading) = reading.split_once(", ").unwrap_or_default();
    format!("{}  {}", screen.paint(Tone::Strong, of.family()), screen.paint(Tone::Quiet, reading))
}

fn summary(types: &[&'static InstanceType], host: HostCapacity) -> String {
    let fitting = types.iter().filter(|candidate| verdict(candidate, host).is_ok()).count();
    let this_host = format!("this host: {}", free(host));
    match (fitting, types.len()) {
        (0, 0) => format!("No types fit {this_host}."),
        (0, all) => format!("None of {} fits {this_host}.", output::count(all, "type")),
        (1, 1) => format!("1 type fits {this_host}."),
        (fitting, all) if fitting == all => format!("{all} types fit {this_host}."),
        (1, all) => format!("1 of {all} types fits {this_host}."),
        (fitting, all) => format!("{fitting} of {all} types fit {this_host}."),
    }
}

fn table(types: &[&'static InstanceType], host: HostCapacity, screen: Screen) -> Table {
    let is_wide = screen.width.is_none_or(|width| width >= WIDE);
    let has_extras = types.iter().any(|row| !extras(row, is_wide).is_empty());
    let mut columns = vec![
        ("  TYPE", Align::Left),
        ("vCPU", Align::Right),
        ("MEMORY", Align::Right),
        ("NET Gbps", Align::Right),
        ("EBS Gbps", Align::Right),
    ];
    if has_extras {
        columns.push(("EXTRAS", Align::Left));
    }
    columns.push((if is_wide { "FITS THIS HOST" } else { "FITS" }, Align::Left));

    let mut table = Table::new(screen, &columns);
    for row in types {
        let mut cells: Vec<Cell> = vec![
            format!("  {}", row.name).into(),
            row.vcpus.to_string().into(),
            memory(row).into(),
            range(row.network.baseline_gbps, row.network.peak_gbps).into(),
            row.ebs.map_or_else(|| "-".to_owned(), ebs_gbps).into(),
        ];
        if has_extras {
            cells.push(extras(row, is_wide).into());
        }
        cells.push(match verdict(row, host) {
            Ok(()) => Cell::new("yes", Tone::Good),
            Err(misfit) if is_wide => Cell::new(format!("no: {}", misfit.clause()), Tone::Quiet),
            Err(misfit) => Cell::new(format!("no: {}", misfit.brief()), Tone::Quiet),
        });
        table.row(cells);
    }
    table
}

/// Formats properties that only some types have: a CPU baseline, GPUs and disks.
fn extras(row: &InstanceType, is_wide: bool) -> String {
    let credits = row.credits.map(|credits| {
        let baseline = decimal(credits.baseline_percent);
        if is_wide { format!("baseline {baseline}%") } else { format!("{baseline}% base") }
    });
    let gpu = row.gpu.map(|gpu| {
        let times = if is_wide { " × " } else { "×" };
        format!("{}{times}{}", gpu.count, gpu.model)
    });
    let disks = row.instance_store.map(|store| {
        if is_wide { store.to_string() } else { format!("{}×{} {}", store.disks, store.disk_gb, store.kind.title()) }
    });
    let mut extras = [credits, gpu, disks].into_iter().flatten();
    if is_wide { extras.collect::<Vec<_>>().join(", ") } else { extras.next().unwrap_or_default() }
}

fn memory(row: &InstanceType) -> String {
    MemorySize::from_mib(row.memory_mib).map_or_else(|| "0".to_owned(), |size| size.to_string())
}

/// Formats a range such as `0.75–10`, or one number if both are equal after rounding.
fn range(baseline: f64, peak: f64) -> String {
    match (decimal(baseline), decimal(peak)) {
        (baseline, peak) if baseline == peak => peak,
        (baseline, peak) => format!("{baseline}–{peak}"),
    }
}

fn ebs_gbps(ebs: EbsBandwidth) -> String {
    range(f64::from(ebs.baseline_mbps) / 1000.0, f64::from(ebs.maximum_mbps) / 1000.0)
}

/// Rounds to two decimals, without trailing zeros.
fn decimal(number: f64) -> String {
    // Formatting alone would print 0.425 as 0.42, because its binary value is slightly less than 0.425.
    let rounded = (number * 100.0).round() / 100.0;
    format!("{rounded:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Renders one type in full, with an explanation of its name.
fn render_one(shown: &'static InstanceType, host: HostCapacity, screen: Screen) -> String {
    let mut lines = vec![
        screen.paint(Tone::Strong, shown.name),
        screen.paint(Tone::Quiet, shown.category.explanation()),
        String::new(),
    ];
    lines.extend(shown.parts.reading().into_iter().map(|part| {
        // Padded before coloring, because color codes have no width.
        format!("  {}  {}", screen.paint(Tone::Strong, &format!("{:<10}", part.text)), part.meaning)
    }));
    lines.push(String::new());
    let labelled = details(shown).into_iter().chain([("Fits this host", fit_sentence(shown, host))]);
    lines.extend(
        labelled.map(|(label, value)| format!("  {}  {value}", screen.paint(Tone::Quiet, &format!("{label:<14}")))),
    );
    lines.join("\n")
}

fn details(shown: &InstanceType) -> Vec<(&'static str, String)> {
    let cores = output::count((shown.vcpus / shown.threads_per_core) as usize, "core");
    let threads = output::count(shown.threads_per_core as usize, "thread");
    let architectures: Vec<_> = shown.architectures.iter().map(|a| a.as_str()).collect();
    let network = shown.network;
    let mut details = vec![
        ("vCPUs", format!("{} ({cores}, {threads} each)", shown.vcpus)),
        ("Memory", memory(shown)),
        ("Architecture", architectures.join(", ")),
        (
            "Network",
            format!(
                "{} Gbps, {}, {} each",
                range(network.baseline_gbps, network.peak_gbps),
                output::count(network.max_interfaces as usize, "interface"),
                plural_addresses(network.ipv4_per_interface),
            ),
        ),
        ("EBS", shown.ebs.map_or_else(|| "shared with the network".to_owned(), ebs_detail)),
        ("Instance store", shown.instance_store.map_or_else(|| "none".to_owned(), |store| store.to_string())),
    ];
    details.extend(shown.gpu.map(|gpu| ("GPUs", format!("{gpu}, {} each", approximate_mib(gpu.memory_mib)))));
    details.extend(shown.credits.into_iter().flat_map(|credits| {
        let baseline = decimal(credits.baseline_percent);
        let (per_hour, maximum) = (decimal(credits.per_hour), decimal(credits.maximum));
        [
            ("CPU baseline", format!("{baseline}% of each vCPU")),
            ("CPU credits", format!("{per_hour} per hour, maximum balance {maximum}")),
        ]
    }));
    details.push(("Hibernation", if shown.hibernation { "yes" } else { "no" }.to_owned()));
    details
}

fn plural_addresses(number: u32) -> String {
    format!("{number} IPv4 address{}", if number == 1 { "" } else { "es" })
}

fn ebs_detail(ebs: EbsBandwidth) -> String {
    let iops = match (ebs.baseline_iops, ebs.maximum_iops) {
        (baseline, maximum) if baseline == maximum => maximum.to_string(),
        (baseline, maximum) => format!("{baseline}–{maximum}"),
    };
    format!("{} Gbps, {iops} IOPS", ebs_gbps(ebs))
}

fn fit_sentence(shown: &'static InstanceType, host: HostCapacity) -> String {
    match verdict(shown, host) {
        Ok(()) => "yes".to_owned(),
        Err(misfit) => format!("no: {}", misfit.sentence(host)),
    }
}

/// The output of `--output json`: EC2's response, with Wisp's additions to each type in a separate field.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    instance_types: Vec<Listed>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(flatten)]
    info: InstanceTypeInfo,
    wisp: Remarks,
}

/// Properties that EC2's API does not have: CPU credits, and whether this host can run the type.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Remarks {
    fits_this_host: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_credits: Option<CreditInfo>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CreditInfo {
    #[serde(rename = "BaselinePercentPerVCpu")]
    baseline_percent: f64,
    earned_per_hour: f64,
    maximum: f64,
}

impl Listing {
    fn new(types: &[&'static InstanceType], host: HostCapacity) -> Self {
        let listed =
            |row: &&'static InstanceType| Listed { info: InstanceTypeInfo::from(*row), wisp: Remarks::new(row, host) };
        Listing { instance_types: types.iter().map(listed).collect() }
    }
}

impl Remarks {
    fn new(row: &'static InstanceType, host: HostCapacity) -> Self {
        let misfit = verdict(row, host).err();
        Remarks {
            fits_this_host: misfit.is_none(),
            reason: misfit.map(|misfit| misfit.sentence(host)),
            cpu_credits: row.credits.map(|credits| CreditInfo {
                baseline_percent: credits.baseline_percent,
                earned_per_hour: credits.per_hour,
                maximum: credits.maximum,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAPTOP: HostCapacity = HostCapacity { cpus: 2, memory_mib: 23_703 };

    fn find(name: &str) -> &'static InstanceType {
        catalog::find(name).expect(name)
    }

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
    }

    fn screen(width: usize) -> Screen {
        Screen { width: Some(width), color: false }
    }

    /// Hosts that lack CPUs, memory or both.
    const HOSTS: [HostCapacity; 3] =
        [LAPTOP, HostCapacity { cpus: 1, memory_mib: 200 }, HostCapacity { cpus: 512, memory_mib: 200 }];

    #[test]
    fn the_whole_catalogue_fits_an_80_column_terminal() {
        let all: Vec<_> = catalog::all().iter().collect();
        for host in HOSTS {
            assert_eq!(widest(&render_all(&all, host, screen(80))).max(80), 80);
        }
        let text = render_all(&all, LAPTOP, screen(80));
        for row in all {
            assert!(text.contains(&format!("  {} ", row.name)), "{}", row.name);
            let text = render_one(row, LAPTOP, screen(80));
            assert!(widest(&text) <= 80, "{text}");
        }
    }

    #[test]
    fn the_whole_catalogue_fits_a_120_column_terminal() {
        let all: Vec<_> = catalog::all().iter().collect();
        for host in HOSTS {
            assert_eq!(widest(&render_all(&all, host, screen(120))).max(120), 120);
        }
    }

    #[test]
    fn table_has_family_below_category() {
        let types = catalog::select("d3").expect("a known family");
        let text = render_all(&types[..1], LAPTOP, screen(80));
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "STORAGE OPTIMIZED  large or fast local disks: search, analytics",
                "  TYPE       vCPU  MEMORY  NET Gbps  EBS Gbps  EXTRAS      FITS",
                "d3  third generation",
                "  d3.xlarge     4  32 GiB      3–15  0.85–2.8  3×1980 HDD  no: CPUs",
                "",
                "None of 1 type fits this host: 2 CPUs, 23.1 GiB free.",
            ]
        );
    }

    #[test]
    fn empty_extras_column_is_omitted() {
        let types = catalog::select("c6i").expect("a known family");
        assert!(!render_all(&types, LAPTOP, screen(80)).contains("EXTRAS"));
    }

    #[test]
    fn single_type_explains_name_and_fit() {
        let text = render_one(find("t4g.nano"), LAPTOP, Screen::PLAIN);
        for expected in [
            "g           Graviton (Arm)",
            "vCPUs           2 (2 cores, 1 thread each)",
            "CPU baseline    5% of each vCPU",
            "CPU credits     6 per hour, maximum balance 144",
            "Fits this host  no: it has Arm processors, and Wisp runs only x86_64 guests",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn misfit_clause_names_missing_resource() {
        let clause = |name| verdict(find(name), LAPTOP).expect_err(name).clause();
        assert_eq!(clause("c5.xlarge"), "short of CPUs");
        assert_eq!(clause("x2iedn.xlarge"), "short of CPUs and memory");
        assert_eq!(clause("c7i.48xlarge"), "more than 64 vCPUs");
        assert_eq!(clause("c7i.metal-48xl"), "bare metal");
        assert_eq!(verdict(find("r5.large"), LAPTOP), Ok(()));
    }

    #[test]
    fn numbers_have_at_most_two_decimals() {
        assert_eq!(decimal(0.032), "0.03");
        assert_eq!(decimal(0.781), "0.78");
        assert_eq!(decimal(0.425), "0.43");
        assert_eq!(decimal(10.0), "10");
        assert_eq!(decimal(100.0), "100");
        assert_eq!(range(0.75, 10.0), "0.75–10");
        assert_eq!(range(25.0, 25.0), "25");
    }

    #[test]
    fn json_adds_remarks_to_ec2_shapes() {
        let types = [find("c5.xlarge"), find("t2.nano")];
        let value = serde_json::to_value(Listing::new(&types, LAPTOP)).expect("plain data");
        let types = &value["InstanceTypes"];
        assert_eq!(types[0]["InstanceType"], "c5.xlarge");
        assert_eq!(types[0]["Wisp"]["FitsThisHost"], false);
        assert_eq!(types[0]["Wisp"]["Reason"], "this host has 2 CPUs, 23.1 GiB free");
        assert_eq!(types[1]["VCpuInfo"]["DefaultVCpus"], 1);
        assert_eq!(types[1]["Wisp"]["FitsThisHost"], true);
        assert_eq!(types[1]["Wisp"]["CpuCredits"]["BaselinePercentPerVCpu"], 5.0);
    }
}
