//! The measures of `wisp bench`: names, units, and the conversion of a workload's counts to figures.

use std::time::Duration;

#[derive(Debug, PartialEq)]
pub struct Measure {
    /// Name on the command line and in JSON.
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// Subject of the measure, which determines the limits that can apply.
    pub about: About,
    /// The workload's name in the guest; empty if the measure has none.
    workload: &'static str,
    /// Divisor that converts amounts per second, or seconds per unit of work, to `unit`.
    scale: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    OneCpu,
    AllCpus,
    Memory,
    /// Bytes per second of the root volume.
    DiskBytes,
    /// Operations per second of the root volume.
    DiskOperations,
    /// Bytes per second through the network interface.
    Network,
    /// Round-trip time through the network interface.
    NetworkLatency,
    Start,
    Command,
}

const MIB: f64 = 1_048_576.0;

/// In order of execution and display.
pub static BUILT_IN: [Measure; 18] = [
    cpu("integer-one", "Integer, one vCPU (SHA-256)", "MiB/s", About::OneCpu, "integer", 1024.0),
    cpu("integer-all", "Integer, all vCPUs (SHA-256)", "MiB/s", About::AllCpus, "integer", 1024.0),
    cpu("float-one", "Floating point, one vCPU (matrices)", "GFLOP/s", About::OneCpu, "float", 1e9),
    cpu("float-all", "Floating point, all vCPUs (matrices)", "GFLOP/s", About::AllCpus, "float", 1e9),
    cpu("memory-bandwidth", "Memory, copy on one vCPU", "GB/s", About::Memory, "memory-bandwidth", 1e9),
    Measure {
        better: Better::Lower,
        ..cpu("memory-latency", "Memory, dependent loads", "ns", About::Memory, "memory-latency", 1e-9)
    },
    disk("disk-read-1", "Disk, sequential read, queue depth 1"),
    disk("disk-read-32", "Disk, sequential read, queue depth 32"),
    disk("disk-write-1", "Disk, sequential write, queue depth 1"),
    disk("disk-write-32", "Disk, sequential write, queue depth 32"),
    random("disk-random-read-1", "Disk, random 4 KiB read, queue depth 1"),
    random("disk-random-read-32", "Disk, random 4 KiB read, queue depth 32"),
    random("disk-random-write-1", "Disk, random 4 KiB write, queue depth 1"),
    random("disk-random-write-32", "Disk, random 4 KiB write, queue depth 32"),
    cpu("network-throughput", "Network, TCP from guest to host", "Mbit/s", About::Network, "net", 125_000.0),
    Measure {
        better: Better::Lower,
        ..cpu("network-latency", "Network, TCP round trip", "ms", About::NetworkLatency, "net", 1e-3)
    },
    start("warm-launch", "Launch from a template until ready"),
    start("boot", "Cold boot until ready"),
];

pub static COMMAND: Measure = Measure { about: About::Command, workload: "", ..start("command", "Command") };

const fn cpu(
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    about: About,
    workload: &'static str,
    scale: f64,
) -> Measure {
    Measure { name, title, unit, better: Better::Higher, about, workload, scale }
}

const fn disk(name: &'static str, title: &'static str) -> Measure {
    cpu(name, title, "MiB/s", About::DiskBytes, name, MIB)
}

const fn random(name: &'static str, title: &'static str) -> Measure {
    cpu(name, title, "IOPS", About::DiskOperations, name, 1.0)
}

const fn start(name: &'static str, title: &'static str) -> Measure {
    Measure { better: Better::Lower, ..cpu(name, title, "s", About::Start, "", 1.0) }
}

impl Measure {
    /// Returns the guest workload's name. Start times and the user's command have none.
    pub fn workload(&self) -> Option<&'static str> {
        Some(self.workload).filter(|name| !name.is_empty())
    }

    pub fn is_of_disk(&self) -> bool {
        matches!(self.about, About::DiskBytes | About::DiskOperations)
    }

    pub fn is_of_network(&self) -> bool {
        matches!(self.about, About::Network | About::NetworkLatency)
    }

    /// Returns the figure for `amount` in `elapsed`, or `None` if either is zero.
    pub fn figure(&self, amount: u64, elapsed: Duration) -> Option<f64> {
        let (amount, seconds) = (amount as f64, elapsed.as_secs_f64());
        let figure = match self.better {
            Better::Higher => amount / seconds / self.scale,
            Better::Lower => seconds / amount / self.scale,
        };
        Some(figure).filter(|figure| figure.is_finite() && *figure > 0.0)
    }

    /// Returns the slowdown relative to the best figure: 0.25 is a quarter slower.
    pub fn slowdown(&self, figure: f64, best: f64) -> f64 {
        let ratio = match self.better {
            Better::Higher => best / figure,
            Better::Lower => figure / best,
        };
        (ratio - 1.0).max(0.0)
    }

    pub fn better_of(&self, one: f64, other: f64) -> f64 {
        match self.better {
            Better::Higher => one.max(other),
            Better::Lower => one.min(other),
        }
    }
}

/// Selects measures by name, by a common prefix (`disk`, `disk-random`), or by `cpu`. The error is the unknown name.
pub fn chosen<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<&'static Measure>, &'a str> {
    let mut wanted = [false; BUILT_IN.len()];
    for name in names {
        let mut found = false;
        for (measure, wanted) in BUILT_IN.iter().zip(&mut wanted) {
            let rest = measure.name.strip_prefix(name);
            let is_cpu = name == "cpu" && matches!(measure.about, About::OneCpu | About::AllCpus);
            if is_cpu || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) && !name.is_empty() {
                (*wanted, found) = (true, true);
            }
        }
        if !found {
            return Err(name);
        }
    }
    Ok(BUILT_IN.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(measure, _)| measure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<&'static str> {
        chosen(names.iter().copied()).unwrap().into_iter().map(|measure| measure.name).collect()
    }

    #[test]
    fn names_and_prefixes_select_measures_in_order() {
        assert_eq!(names(&["boot", "integer-one"]), ["integer-one", "boot"]);
        assert_eq!(names(&["memory"]), ["memory-bandwidth", "memory-latency"]);
        assert_eq!(names(&["cpu"]).len(), 4);
        assert_eq!(names(&["disk"]).len(), 8);
        assert_eq!(names(&["disk-random", "disk-random-read-1"]).len(), 4);
        assert_eq!(chosen(["integer", "dis"]), Err("dis"));
        assert_eq!(chosen([""]), Err(""));
    }

    #[test]
    fn figures_use_measure_unit() {
        let figure = |name: &str, amount, ms| {
            let measure = BUILT_IN.iter().find(|measure| measure.name == name).unwrap();
            measure.figure(amount, Duration::from_millis(ms)).map(|figure| (figure * 1000.0).round() / 1000.0)
        };
        assert_eq!(figure("integer-one", 2048, 500), Some(4.0));
        assert_eq!(figure("memory-latency", 1_000_000, 100), Some(100.0));
        assert_eq!(figure("disk-read-1", 50 << 20, 250), Some(200.0));
        assert_eq!(figure("disk-random-read-32", 900, 300), Some(3000.0));
        assert_eq!(figure("network-throughput", 12_500_000, 1000), Some(100.0));
        assert_eq!(figure("network-latency", 100, 500), Some(5.0));
        assert_eq!(figure("boot", 1, 8_500), Some(8.5));
        assert_eq!(figure("boot", 0, 8_500), None);
        assert_eq!(figure("integer-one", 5, 0), None);
    }

    #[test]
    fn slowdown_applies_to_rates_and_times() {
        let [rate, time] = ["integer-one", "boot"].map(|name| chosen([name]).unwrap()[0]);
        assert_eq!((rate.slowdown(50.0, 100.0), time.slowdown(2.0, 1.0)), (1.0, 1.0));
        assert_eq!((rate.slowdown(100.0, 100.0), time.slowdown(1.0, 1.0)), (0.0, 0.0));
        assert_eq!((rate.better_of(1.0, 2.0), time.better_of(1.0, 2.0)), (2.0, 1.0));
    }
}
