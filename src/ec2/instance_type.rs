//! Instance types: the resources of each type, and the reasons why Wisp cannot run some types.

use std::fmt;

use super::error::{Ec2Error, ErrorCode};
use super::type_name::{Category, TypeName};

/// One row of EC2's catalog. Bandwidths and disk sizes are decimal and memory is binary, as in EC2.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceType {
    pub parts: TypeName<'static>,
    /// For example `c6i.2xlarge`.
    pub name: &'static str,
    pub category: Category,
    pub vcpus: u32,
    pub threads_per_core: u32,
    pub memory_mib: u64,
    pub architectures: Vec<Architecture>,
    pub network: Network,
    /// None if EC2 reserves no EBS bandwidth.
    pub ebs: Option<EbsBandwidth>,
    pub instance_store: Option<InstanceStore>,
    pub gpu: Option<Gpu>,
    /// None if the type is not burstable.
    pub credits: Option<CpuCredits>,
    pub hibernation: bool,
    /// True for a physical machine without a hypervisor.
    pub bare_metal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    I386,
    X86_64,
    Arm64,
}

impl Architecture {
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::I386 => "i386",
            Architecture::X86_64 => "x86_64",
            Architecture::Arm64 => "arm64",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::I386, Self::X86_64, Self::Arm64].into_iter().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// EC2's description, for example `Up to 12.5 Gigabit`.
    pub label: &'static str,
    /// In Gbit/s.
    pub baseline_gbps: f64,
    /// Burst bandwidth in Gbit/s.
    pub peak_gbps: f64,
    pub max_interfaces: u32,
    pub ipv4_per_interface: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EbsBandwidth {
    /// In Mbit/s.
    pub baseline_mbps: u32,
    /// Burst bandwidth in Mbit/s.
    pub maximum_mbps: u32,
    pub baseline_iops: u32,
    /// Burst IOPS.
    pub maximum_iops: u32,
}

/// Instance-store disks, which are lost when the instance stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceStore {
    pub disks: u32,
    /// Size of each disk in GB.
    pub disk_gb: u32,
    pub kind: DiskKind,
}

impl InstanceStore {
    pub fn total_gb(&self) -> u32 {
        self.disks * self.disk_gb
    }
}

impl fmt::Display for InstanceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{} × {} GB {}", self.disks, self.disk_gb, self.kind.title());
        f.pad(&text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    Hdd,
    Ssd,
}

impl DiskKind {
    pub fn as_str(self) -> &'static str {
        match self {
            DiskKind::Hdd => "hdd",
            DiskKind::Ssd => "ssd",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            DiskKind::Hdd => "HDD",
            DiskKind::Ssd => "SSD",
        }
    }
}

/// GPUs, all of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub count: u32,
    pub manufacturer: &'static str,
    pub model: &'static str,
    /// Per GPU, in MiB.
    pub memory_mib: u64,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} × {} {}", self.count, self.manufacturer, self.model))
    }
}

/// CPU credits of a burstable type. One credit is one vCPU at 100% for one minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuCredits {
    pub per_hour: f64,
    /// Accrual limit in credits.
    pub maximum: f64,
    /// Baseline utilization per vCPU.
    pub baseline_percent: f64,
}

/// The reason why Wisp cannot run an EC2 type on any host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLaunchable {
    #[error("it is bare metal, and Wisp runs only virtual machines")]
    BareMetal,
    #[error("it has GPUs, which Wisp does not support")]
    Gpu,
    #[error("it has Arm processors, and Wisp runs only x86_64 guests")]
    Architecture,
}

impl NotLaunchable {
    pub fn brief(self) -> &'static str {
        match self {
            NotLaunchable::BareMetal => "bare metal",
            NotLaunchable::Gpu => "GPU",
            NotLaunchable::Architecture => "Arm",
        }
    }
}

impl InstanceType {
    /// Returns everything before the dot, for example `c6i`.
    pub fn family(&self) -> &'static str {
        self.parts.family
    }

    /// Returns the size of each disk in GB; empty for a type with EBS storage only.
    pub fn instance_store(&self) -> Vec<u64> {
        let Some(store) = self.instance_store else { return Vec::new() };
        (0..store.disks).map(|_| store.disk_gb.into()).collect()
    }

    /// Checks that Wisp could run the type on a large enough host.
    pub fn launchable(&self) -> Result<(), NotLaunchable> {
        if self.bare_metal {
            Err(NotLaunchable::BareMetal)
        } else if self.gpu.is_some() {
            Err(NotLaunchable::Gpu)
        } else if !self.architectures.contains(&Architecture::X86_64) {
            Err(NotLaunchable::Architecture)
        } else {
            Ok(())
        }
    }

    /// Refuses a type that cannot run here on any host.
    pub fn check_launchable(&self) -> Result<(), Ec2Error> {
        self.launchable().map_err(|reason| {
            let what = format!("{} cannot run here: {reason}.", self.name);
            let hint = "`wisp types --fits` lists the types that this host can run.";
            Ec2Error::refused(ErrorCode::Unsupported, what, Some(hint.into()))
        })
    }

    /// Returns true for the types of EC2's free tier (EC2 User Guide, "Track your Free Tier usage for Amazon EC2", for
    /// accounts that were created since July 15, 2025).
    pub fn is_in_free_tier(&self) -> bool {
        matches!(self.name, "t3.micro" | "t3.small" | "t4g.micro" | "t4g.small")
    }

    /// Returns the hypervisor that the type has in EC2, or none for bare metal.
    pub fn ec2_hypervisor(&self) -> Option<&'static str> {
        match self.family() {
            _ if self.bare_metal => None,
            // The catalog's only families from before the Nitro system.
            "t2" | "i3" | "p3" => Some("xen"),
            _ => Some("nitro"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;

    fn launchable(name: &str) -> Result<(), NotLaunchable> {
        catalog::find(name).expect(name).launchable()
    }

    #[test]
    fn metal_gpu_and_arm_types_are_refused_with_reason() {
        assert_eq!(launchable("t3.micro"), Ok(()));
        assert_eq!(launchable("t2.micro"), Ok(()));
        assert_eq!(launchable("m7i.metal-24xl"), Err(NotLaunchable::BareMetal));
        assert_eq!(launchable("g4dn.metal"), Err(NotLaunchable::BareMetal));
        assert_eq!(launchable("p3.2xlarge"), Err(NotLaunchable::Gpu));
        assert_eq!(launchable("t4g.micro"), Err(NotLaunchable::Architecture));
    }

    #[test]
    fn instance_store_lists_each_disk() {
        let disks = |name| catalog::find(name).expect(name).instance_store();
        assert_eq!(disks("i3.4xlarge"), [1900, 1900]);
        assert_eq!(disks("t3.micro"), [0; 0]);
    }

    #[test]
    fn hypervisor_is_xen_before_nitro() {
        let hypervisor = |name| catalog::find(name).expect(name).ec2_hypervisor();
        assert_eq!(hypervisor("t2.nano"), Some("xen"));
        assert_eq!(hypervisor("t3.nano"), Some("nitro"));
        assert_eq!(hypervisor("c5.metal"), None);
    }
}
