//! Admission control: does the host have capacity for an instance?
//!
//! Memory is never overcommitted. vCPUs may outnumber the host's CPUs if the caller allows it, up to the VMM's limit.

use std::fmt;

use super::catalog;
use super::error::{Ec2Error, ErrorCode};
use super::instance_type::InstanceType;
use super::size::{MemorySize, approximate_mib};

/// Maximum number of vCPUs per guest.
pub const MAX_VCPUS: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCapacity {
    /// The host's usable CPUs.
    pub cpus: u32,
    /// The host's available memory.
    pub memory_mib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceSize {
    pub instance_type: &'static InstanceType,
    /// From the instance type, unless overridden.
    pub vcpus: u32,
    /// From the instance type, unless overridden.
    pub memory_mib: u64,
}

impl InstanceSize {
    pub fn of_type(instance_type: &'static InstanceType) -> Self {
        InstanceSize { instance_type, vcpus: instance_type.vcpus, memory_mib: instance_type.memory_mib }
    }

    /// Refuses a type that can never run here, and an unsupported number of vCPUs.
    pub fn new(
        instance_type: &'static InstanceType,
        vcpus: Option<u32>,
        memory: Option<MemorySize>,
    ) -> Result<Self, Ec2Error> {
        instance_type.check_launchable()?;
        if let Some(vcpus) = vcpus
            && !(1..=MAX_VCPUS).contains(&vcpus)
        {
            let rule = format!("it must be between 1 and {MAX_VCPUS}.");
            return Err(Ec2Error::invalid_parameter("VCpus", vcpus, rule));
        }
        let of_type = InstanceSize::of_type(instance_type);
        Ok(InstanceSize {
            vcpus: vcpus.unwrap_or(of_type.vcpus),
            memory_mib: memory.map_or(of_type.memory_mib, MemorySize::mib),
            ..of_type
        })
    }

    fn is_pure(&self) -> bool {
        *self == InstanceSize::of_type(self.instance_type)
    }
}

impl fmt::Display for InstanceSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpus = count(self.vcpus, "vCPU");
        let memory = approximate_mib(self.memory_mib);
        if self.is_pure() {
            write!(f, "{} has {vcpus} and {memory}", self.instance_type.name)
        } else {
            write!(f, "{vcpus} and {memory} were requested")
        }
    }
}

struct Shortage {
    request: InstanceSize,
    host: HostCapacity,
    lacking: Lacking,
    /// The largest type that fits, of the same family if possible.
    largest: Option<&'static InstanceType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// More vCPUs than the VMM supports on any host.
    Vmm,
    Cpus,
    Memory,
    CpusAndMemory,
}

impl Lacking {
    pub fn brief(self) -> &'static str {
        match self {
            Lacking::Vmm | Lacking::Cpus => "CPUs",
            Lacking::Memory => "memory",
            Lacking::CpusAndMemory => "CPUs, memory",
        }
    }
}

impl Shortage {
    fn hint(&self) -> String {
        let mut advice = match self.largest {
            Some(largest) => format!(
                "The largest type{} that fits is {} ({}, {}).",
                if self.request.instance_type.family() == largest.family() { " in this family" } else { "" },
                largest.name,
                count(largest.vcpus, "vCPU"),
                approximate_mib(largest.memory_mib),
            ),
            None => "No type fits. Free some memory, or request less with --memory.".to_owned(),
        };
        if self.lacking == Lacking::Cpus {
            advice.push_str(" --overcommit lets vCPUs share the host's CPUs.");
        }
        advice
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; ", self.request)?;
        match self.lacking {
            Lacking::Vmm => write!(f, "a guest can have at most {MAX_VCPUS} vCPUs."),
            Lacking::Cpus | Lacking::Memory | Lacking::CpusAndMemory => write!(
                f,
                "this host has {} and {} free.",
                count(self.host.cpus, "CPU"),
                approximate_mib(self.host.memory_mib),
            ),
        }
    }
}

impl From<Shortage> for Ec2Error {
    fn from(shortage: Shortage) -> Ec2Error {
        Ec2Error::refused(ErrorCode::InsufficientInstanceCapacity, shortage.to_string(), Some(shortage.hint()))
    }
}

/// Checks that the instance fits on the host. With `overcommit`, its vCPUs may outnumber the host's CPUs.
pub fn check(request: &InstanceSize, host: HostCapacity, overcommit: bool) -> Result<(), Ec2Error> {
    shortage(request, host, overcommit).map_or(Ok(()), |shortage| Err(shortage.into()))
}

fn shortage(request: &InstanceSize, host: HostCapacity, overcommit: bool) -> Option<Shortage> {
    let lacking = lacking(request, host, overcommit)?;
    let largest = largest_fitting(request.instance_type, host, overcommit);
    Some(Shortage { request: *request, host, lacking, largest })
}

/// Returns the resources that are short, or none if the instance fits.
pub fn lacking(request: &InstanceSize, host: HostCapacity, overcommit: bool) -> Option<Lacking> {
    if request.vcpus > MAX_VCPUS {
        return Some(Lacking::Vmm);
    }
    let lacks_cpus = request.vcpus > host.cpus && !overcommit;
    let lacks_memory = request.memory_mib > host.memory_mib;
    match (lacks_cpus, lacks_memory) {
        (false, false) => None,
        (true, false) => Some(Lacking::Cpus),
        (false, true) => Some(Lacking::Memory),
        (true, true) => Some(Lacking::CpusAndMemory),
    }
}

pub fn fits(instance_type: &'static InstanceType, host: HostCapacity, overcommit: bool) -> bool {
    instance_type.launchable().is_ok() && lacking(&InstanceSize::of_type(instance_type), host, overcommit).is_none()
}

/// Returns the type with the most vCPUs and memory that fits, of the same family if possible. Of equally large types,
/// prefers one of the same category, then the newest generation.
fn largest_fitting(asked: &InstanceType, host: HostCapacity, overcommit: bool) -> Option<&'static InstanceType> {
    catalog::all().iter().filter(|candidate| fits(candidate, host, overcommit)).max_by_key(|candidate| {
        let same_family = candidate.family() == asked.family();
        let same_category = candidate.category == asked.category;
        let newness = candidate.parts.generation;
        (same_family, candidate.vcpus, candidate.memory_mib, same_category, newness)
    })
}

fn count(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAPTOP: HostCapacity = HostCapacity { cpus: 2, memory_mib: 23_703 };

    fn of_type(name: &str) -> InstanceSize {
        InstanceSize::of_type(catalog::find(name).expect(name))
    }

    fn shortage(name: &str, host: HostCapacity, overcommit: bool) -> Shortage {
        super::shortage(&of_type(name), host, overcommit).expect("a shortage")
    }

    #[test]
    fn instance_fits_to_the_last_mebibyte() {
        let request = of_type("t3.small");
        let exact = HostCapacity { cpus: 2, memory_mib: 2048 };
        assert_eq!(check(&request, exact, false), Ok(()));
        let short = HostCapacity { memory_mib: 2047, ..exact };
        assert_eq!(lacking(&request, short, true), Some(Lacking::Memory));
    }

    #[test]
    fn shortage_reports_request_capacity_and_largest_fit() {
        let error = check(&of_type("m5.4xlarge"), LAPTOP, false).expect_err("too large");
        assert_eq!(error.code(), ErrorCode::InsufficientInstanceCapacity);
        assert_eq!(
            error.to_string(),
            "InsufficientInstanceCapacity: m5.4xlarge has 16 vCPUs and 64 GiB; \
             this host has 2 CPUs and 23.1 GiB free."
        );
        let hint = "The largest type in this family that fits is m5.large (2 vCPUs, 8 GiB).";
        assert_eq!(error.hint(), Some(hint));
    }

    #[test]
    fn overcommit_is_suggested_if_only_cpus_are_short() {
        let shortage = shortage("c5.xlarge", LAPTOP, false);
        assert_eq!(shortage.lacking, Lacking::Cpus);
        assert!(shortage.hint().ends_with("--overcommit lets vCPUs share the host's CPUs."));
    }

    #[test]
    fn overcommit_applies_to_cpus_and_not_memory() {
        assert_eq!(check(&of_type("c5.2xlarge"), LAPTOP, true), Ok(()));
        let shortage = shortage("c5.4xlarge", LAPTOP, true);
        assert_eq!(shortage.lacking, Lacking::Memory);
        assert_eq!(shortage.largest.map(|largest| largest.name), Some("c5.2xlarge"));
    }

    #[test]
    fn more_vcpus_than_vmm_supports_fit_nowhere() {
        let huge = HostCapacity { cpus: 512, memory_mib: 8 << 20 };
        let shortage = shortage("c6i.24xlarge", huge, true);
        assert_eq!(shortage.lacking, Lacking::Vmm);
        assert_eq!(shortage.largest.map(|largest| largest.name), Some("c6i.16xlarge"));
        assert!(shortage.to_string().ends_with("a guest can have at most 64 vCPUs."));
    }

    #[test]
    fn largest_type_of_another_family_is_suggested() {
        let shortage = shortage("i3.large", HostCapacity { cpus: 1, memory_mib: 1500 }, false);
        assert_eq!(shortage.largest.map(|largest| largest.name), Some("t2.micro"));
        assert_eq!(shortage.hint(), "The largest type that fits is t2.micro (1 vCPU, 1 GiB).");
    }

    #[test]
    fn host_without_memory_fits_nothing() {
        let shortage = shortage("t3.nano", HostCapacity { cpus: 8, memory_mib: 100 }, false);
        assert_eq!(shortage.largest, None);
        assert!(shortage.hint().starts_with("No type fits"));
    }

    #[test]
    fn overrides_replace_size_of_type() {
        let micro = catalog::find("t3.micro").expect("a known type");
        let request = InstanceSize::new(micro, Some(1), MemorySize::from_mib(256)).expect("allowed");
        assert_eq!((request.vcpus, request.memory_mib), (1, 256));
        assert_eq!(request.to_string(), "1 vCPU and 256 MiB were requested");
        assert_eq!(InstanceSize::new(micro, None, None), Ok(InstanceSize::of_type(micro)));
        for vcpus in [0, 65, u32::MAX] {
            let error = InstanceSize::new(micro, Some(vcpus), None).expect_err("not allowed");
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue);
        }
    }

    #[test]
    fn unlaunchable_type_is_refused_even_with_overrides() {
        let arm = catalog::find("t4g.micro").expect("a known type");
        let error = InstanceSize::new(arm, Some(1), MemorySize::from_mib(256)).expect_err("Arm");
        assert_eq!(
            error.to_string(),
            "Unsupported: t4g.micro cannot run here: it has Arm processors, and Wisp runs only x86_64 guests."
        );
    }

    proptest! {
        #[test]
        fn suggested_type_fits(cpus in 0..200_u32, memory_mib in 0..5_000_000_u64, overcommit: bool) {
            let host = HostCapacity { cpus, memory_mib };
            for instance_type in catalog::all() {
                let shortage = super::shortage(&InstanceSize::of_type(instance_type), host, overcommit);
                if let Some(largest) = shortage.and_then(|shortage| shortage.largest) {
                    prop_assert!(fits(largest, host, overcommit));
                }
            }
        }
    }
}
