//! The catalog of instance types: EC2's figures, built into the program.
//!
//! The rows are parsed on first use. A unit test parses every row, so parsing cannot fail in a release.

use std::sync::LazyLock;

use super::error::{Ec2Error, ErrorCode, one_of};
use super::instance_type::{
    Architecture, CpuCredits, DiskKind, EbsBandwidth, Gpu, InstanceStore, InstanceType, Network,
};
use super::type_name::{Category, TypeName};

const CSV: &str = include_str!("instance-types.csv");

const HEADER: [&str; 22] = [
    "name",
    "vcpu",
    "mem_mib",
    "arch",
    "net_baseline_gbps",
    "net_peak",
    "ebs_baseline_mbps",
    "ebs_iops",
    "instance_store_gb",
    "gpu",
    "ebs_max_mbps",
    "ebs_max_iops",
    "net_label",
    "threads_per_core",
    "instance_disks",
    "hibernate",
    "max_enis",
    "ipv4_per_eni",
    "bare_metal",
    "cpu_credits_per_hour",
    "cpu_credits_max",
    "cpu_baseline_pct_per_vcpu",
];

const SUGGESTIONS: usize = 3;

static CATALOGUE: LazyLock<Vec<InstanceType>> = LazyLock::new(|| parse(CSV).expect("a unit test parses every row"));

/// Returns all types, ordered by category, family and size.
pub fn all() -> &'static [InstanceType] {
    &CATALOGUE
}

pub fn find(name: &str) -> Result<&'static InstanceType, Ec2Error> {
    all().iter().find(|known| known.name == name).ok_or_else(|| unknown(name, all().iter().map(|known| known.name)))
}

/// Returns the types that a word selects: a type (`c6i.large`), a family (`c6i`, `c6i.*`), a series (`c`), or a
/// category (`compute optimized`, or just `compute`).
pub fn select(word: &str) -> Result<Vec<&'static InstanceType>, Ec2Error> {
    let family = word.strip_suffix(".*").unwrap_or(word);
    let selected: Vec<_> = all()
        .iter()
        .filter(|known| {
            let category = known.category.title();
            [known.name, known.family(), known.parts.series, category].contains(&family)
                || category.split(' ').next() == Some(family)
        })
        .collect();
    if !selected.is_empty() {
        return Ok(selected);
    }
    Err(if family.contains('.') {
        unknown(word, all().iter().map(|known| known.name))
    } else {
        unknown(word, all().chunk_by(|a, b| a.family() == b.family()).map(|f| f[0].family()))
    })
}

fn unknown(given: &str, names: impl Iterator<Item = &'static str>) -> Ec2Error {
    let hint = match closest(given, names).as_slice() {
        [] => "`wisp types` lists the instance types.".to_owned(),
        names => format!("Did you mean {}?", one_of(names)),
    };
    let what = format!("Invalid value '{given}' for InstanceType.");
    Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint))
}

/// Returns the names with the smallest edit distance to `given`; none if that is too large for a typo. Names that share
/// more first letters with `given` come first.
fn closest(given: &str, names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let given = given.to_lowercase();
    // Up to a third of the letters may differ, but at most three. A larger distance is not a typo.
    let limit = given.chars().count().div_ceil(3).min(3);
    let mut near: Vec<(usize, &'static str)> =
        names.map(|name| (edit_distance(&given, name), name)).filter(|(distance, _)| *distance <= limit).collect();
    let nearest = near.iter().map(|(distance, _)| *distance).min();
    near.retain(|(distance, _)| Some(*distance) == nearest);
    near.sort_by_key(|(_, name)| std::cmp::Reverse(common_prefix(&given, name)));
    near.truncate(SUGGESTIONS);
    near.into_iter().map(|(_, name)| name).collect()
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}

/// Returns the Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum RowError {
    #[error("the header does not name the expected columns")]
    Header,
    #[error("line {line} has the wrong number of fields: {fields}")]
    FieldCount { line: usize, fields: usize },
    #[error("line {line}: invalid {column}: {value:?}")]
    Field { line: usize, column: &'static str, value: String },
}

fn parse(csv: &'static str) -> Result<Vec<InstanceType>, RowError> {
    let mut lines = csv.lines().enumerate();
    if !lines.next().is_some_and(|(_, header)| header.split(',').eq(HEADER)) {
        return Err(RowError::Header);
    }
    let mut types =
        lines.map(|(index, text)| Row::new(index + 1, text)?.instance_type()).collect::<Result<Vec<_>, _>>()?;
    // The sort is stable, so each family keeps the file's order, which is by size.
    types.sort_by_key(|row: &InstanceType| (row.category, row.family()));
    Ok(types)
}

struct Row {
    line: usize,
    fields: Vec<&'static str>,
}

impl Row {
    fn new(line: usize, text: &'static str) -> Result<Self, RowError> {
        let fields: Vec<_> = text.split(',').collect();
        if fields.len() != HEADER.len() {
            return Err(RowError::FieldCount { line, fields: fields.len() });
        }
        Ok(Row { line, fields })
    }

    fn text(&self, column: &'static str) -> &'static str {
        HEADER.iter().position(|known| *known == column).map_or("", |index| self.fields[index])
    }

    fn read<T>(&self, column: &'static str, read: impl FnOnce(&'static str) -> Option<T>) -> Result<T, RowError> {
        let value = self.text(column);
        read(value).ok_or_else(|| RowError::Field { line: self.line, column, value: value.to_owned() })
    }

    /// Like [`Row::read`], but returns none for an empty column.
    fn read_optional<T>(
        &self,
        column: &'static str,
        read: impl FnOnce(&'static str) -> Option<T>,
    ) -> Result<Option<T>, RowError> {
        match self.text(column) {
            "" => Ok(None),
            _ => self.read(column, read).map(Some),
        }
    }

    fn number<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, RowError> {
        self.read(column, |value| value.parse().ok())
    }

    fn flag(&self, column: &'static str) -> Result<bool, RowError> {
        self.read(column, |value| match value {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        })
    }

    fn instance_type(&self) -> Result<InstanceType, RowError> {
        let parts = self.read("name", TypeName::parse)?;
        Ok(InstanceType {
            parts,
            name: self.text("name"),
            category: self.read("name", |_| Category::of_series(parts.series))?,
            vcpus: self.number("vcpu")?,
            threads_per_core: self.number("threads_per_core")?,
            memory_mib: self.number("mem_mib")?,
            architectures: self.read("arch", |value| value.split('/').map(Architecture::from_name).collect())?,
            network: self.network()?,
            ebs: self.ebs()?,
            instance_store: self.read_optional("instance_disks", read_disks)?,
            gpu: self.read_optional("gpu", read_gpu)?,
            credits: self.credits()?,
            hibernation: self.flag("hibernate")?,
            bare_metal: self.flag("bare_metal")?,
        })
    }

    fn network(&self) -> Result<Network, RowError> {
        Ok(Network {
            label: self.text("net_label"),
            baseline_gbps: self.number("net_baseline_gbps")?,
            peak_gbps: self.number("net_peak")?,
            max_interfaces: self.number("max_enis")?,
            ipv4_per_interface: self.number("ipv4_per_eni")?,
        })
    }

    fn ebs(&self) -> Result<Option<EbsBandwidth>, RowError> {
        if self.text("ebs_baseline_mbps").is_empty() {
            return Ok(None);
        }
        Ok(Some(EbsBandwidth {
            baseline_mbps: self.number("ebs_baseline_mbps")?,
            maximum_mbps: self.number("ebs_max_mbps")?,
            baseline_iops: self.number("ebs_iops")?,
            maximum_iops: self.number("ebs_max_iops")?,
        }))
    }

    fn credits(&self) -> Result<Option<CpuCredits>, RowError> {
        if self.text("cpu_credits_per_hour").is_empty() {
            return Ok(None);
        }
        Ok(Some(CpuCredits {
            per_hour: self.number("cpu_credits_per_hour")?,
            maximum: self.number("cpu_credits_max")?,
            baseline_percent: self.number("cpu_baseline_pct_per_vcpu")?,
        }))
    }
}

/// Parses an instance store, for example `3x1980hdd`.
fn read_disks(text: &str) -> Option<InstanceStore> {
    let (disks, disk) = text.split_once('x')?;
    let (size, kind) =
        [DiskKind::Hdd, DiskKind::Ssd].into_iter().find_map(|kind| Some((disk.strip_suffix(kind.as_str())?, kind)))?;
    let store = InstanceStore { disks: disks.parse().ok()?, disk_gb: size.parse().ok()?, kind };
    store.disks.checked_mul(store.disk_gb)?;
    Some(store)
}

/// Parses a GPU, for example `4xNVIDIA V100 16384MiB`.
fn read_gpu(text: &'static str) -> Option<Gpu> {
    let (count, gpu) = text.split_once('x')?;
    let (name, memory) = gpu.rsplit_once(' ')?;
    let (manufacturer, model) = name.split_once(' ')?;
    Some(Gpu { count: count.parse().ok()?, manufacturer, model, memory_mib: memory.strip_suffix("MiB")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_is_parsed() {
        let types = parse(CSV).expect("every row is well formed");
        assert_eq!(types.len(), CSV.lines().count() - 1);
    }

    #[test]
    fn every_row_is_consistent() {
        let mut names = HashSet::new();
        for row in all() {
            let name = row.name;
            assert!(names.insert(name), "duplicate type {name}");
            assert!((1..=192).contains(&row.vcpus), "{name}");
            assert!(row.vcpus.is_multiple_of(row.threads_per_core), "{name}");
            assert!((512..=4 << 20).contains(&row.memory_mib), "{name}");
            assert_eq!(row.memory_mib % 256, 0, "{name}");
            assert!(!row.architectures.is_empty(), "{name}");
            assert_eq!(row.bare_metal, row.parts.size.starts_with("metal"), "{name}");
            assert_eq!(row.gpu.is_some(), row.category == Category::Accelerated, "{name}");
            let is_arm = row.architectures.contains(&Architecture::Arm64);
            assert_eq!(is_arm, row.parts.attributes.contains('g'), "{name}");
        }
    }

    #[test]
    fn network_and_ebs_peaks_are_not_below_baselines() {
        for row in all() {
            let name = row.name;
            let network = row.network;
            assert!(network.baseline_gbps > 0.0, "{name}");
            assert!(network.baseline_gbps <= network.peak_gbps, "{name}");
            assert!(!network.label.is_empty(), "{name}");
            assert!(network.max_interfaces > 0 && network.ipv4_per_interface > 0, "{name}");
            let Some(ebs) = row.ebs else {
                assert_eq!(row.family(), "t2", "{name}");
                continue;
            };
            assert!(ebs.baseline_mbps > 0 && ebs.baseline_mbps <= ebs.maximum_mbps, "{name}");
            assert!(ebs.baseline_iops > 0 && ebs.baseline_iops <= ebs.maximum_iops, "{name}");
        }
    }

    #[test]
    fn instance_store_disks_add_up_to_total() {
        for line in CSV.lines().skip(1) {
            let row = Row::new(1, line).expect("the fields are there");
            let store = row.instance_type().expect("the row is read").instance_store;
            let total: u32 = row.number("instance_store_gb").expect("a number");
            assert_eq!(store.map_or(0, |store| store.total_gb()), total, "{line}");
        }
    }

    #[test]
    fn burstable_credits_follow_from_baseline() {
        for row in all() {
            let name = row.name;
            assert_eq!(row.credits.is_some(), row.category == Category::Burstable, "{name}");
            let Some(credits) = row.credits else { continue };
            let earned = 60.0 * f64::from(row.vcpus) * credits.baseline_percent / 100.0;
            assert!((credits.per_hour - earned).abs() < 1e-9, "{name}");
            assert!((credits.maximum - 24.0 * earned).abs() < 1e-9, "{name}");
        }
    }

    #[test]
    fn known_types_have_published_figures() {
        let row = find("i3.4xlarge").expect("a known type");
        assert_eq!((row.vcpus, row.memory_mib), (16, 124_928));
        let store = InstanceStore { disks: 2, disk_gb: 1900, kind: DiskKind::Ssd };
        assert_eq!(row.instance_store, Some(store));
        let gpu = find("p3.8xlarge").expect("a known type").gpu.expect("a GPU");
        assert_eq!(gpu.to_string(), "4 × NVIDIA V100");
        assert_eq!(gpu.memory_mib, 16_384);
    }

    #[test]
    fn families_are_contiguous_and_ascending() {
        let families: Vec<_> = all().chunk_by(|a, b| a.family() == b.family()).map(|f| f[0].family()).collect();
        let distinct: HashSet<_> = families.iter().collect();
        assert_eq!(families.len(), distinct.len());
        for pair in all().windows(2) {
            let [a, b] = pair else { continue };
            if a.family() == b.family() && !b.bare_metal {
                assert!(a.memory_mib < b.memory_mib, "{} before {}", a.name, b.name);
            }
        }
    }

    #[test]
    fn select_accepts_type_family_series_or_category() {
        let names = |word| -> Vec<&str> { select(word).expect(word).iter().map(|selected| selected.name).collect() };
        assert_eq!(names("c6i.large"), ["c6i.large"]);
        assert_eq!(names("d3"), ["d3.xlarge", "d3.2xlarge", "d3.4xlarge", "d3.8xlarge"]);
        assert_eq!(names("d3.*"), names("d3"));
        assert_eq!(names("d"), names("d3"));
        assert_eq!(names("accelerated").first(), Some(&"g4dn.xlarge"));
        assert_eq!(names("burstable"), names("t"));
        assert_eq!(names("general purpose"), names("m"));
    }

    fn hint(error: &Ec2Error) -> &str {
        assert_eq!(error.code(), ErrorCode::InvalidParameterValue);
        error.hint().expect("a hint")
    }

    #[test]
    fn unknown_type_is_refused_with_closest_names() {
        let error = find("t9.big").expect_err("unknown");
        assert_eq!(error.to_string(), "InvalidParameterValue: Invalid value 't9.big' for InstanceType.");
        assert_eq!(hint(&error), "`wisp types` lists the instance types.");
        for (name, expected) in [
            ("t3.micr0", "Did you mean t3.micro?"),
            ("T3.Micro", "Did you mean t3.micro?"),
            ("c6.large", "Did you mean c6i.large or c5.large?"),
        ] {
            assert_eq!(hint(&find(name).expect_err(name)), expected);
        }
        assert!(hint(&find("i3.metal").expect_err("unknown")).starts_with("Did you mean i4i.metal"));
    }

    #[test]
    fn unknown_family_is_refused_with_closest_families() {
        assert_eq!(hint(&select("c8i").expect_err("unknown")), "Did you mean c6i or c7i?");
        assert_eq!(hint(&select("c6i.huge").expect_err("unknown")), "Did you mean c6i.large?");
    }

    #[test]
    fn malformed_row_is_refused() {
        assert_eq!(parse("name,vcpu\n"), Err(RowError::Header));
        let short = Row::new(7, "t3.micro,2").err();
        assert_eq!(short, Some(RowError::FieldCount { line: 7, fields: 2 }));
        let text = "t3.micro,two,1024,x86_64,1,1,1,1,0,,1,1,x,1,,1,1,1,0,,,";
        let error = Row::new(7, text).expect("the fields are there").instance_type().err();
        let wrong = RowError::Field { line: 7, column: "vcpu", value: "two".to_owned() };
        assert_eq!(error, Some(wrong));
    }

    #[test]
    fn edit_distance_counts_edits() {
        for (a, b, distance) in [("", "", 0), ("", "abc", 3), ("t3", "t3a", 1), ("abc", "adc", 1)] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn find_and_select_never_panic(word in ".*") {
            let _ = find(&word);
            let _ = select(&word);
        }
    }
}
