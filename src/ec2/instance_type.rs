//! Instance types: the resources of each type, and the reasons why Wisp cannot run some.

use std::fmt;

use super::type_name::{Category, TypeName};

/// One row of EC2's catalog. Bandwidths and disk sizes are decimal and memory is binary, as in EC2.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceType {
    /// The parsed name.
    pub parts: TypeName<'static>,
    /// The whole name, for example `c6i.2xlarge`.
    pub name: &'static str,
    /// The category of the family.
    pub category: Category,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Virtual CPUs per core.
    pub threads_per_core: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The processors' architectures.
    pub architectures: Vec<Architecture>,
    /// The network bandwidth.
    pub network: Network,
    /// The bandwidth to EBS volumes; none where EC2 does not reserve any.
    pub ebs: Option<EbsBandwidth>,
    /// Instance-store disks.
    pub instance_store: Option<InstanceStore>,
    /// GPUs.
    pub gpu: Option<Gpu>,
    /// CPU credits of a burstable type.
    pub credits: Option<CpuCredits>,
    /// True if the type supports hibernation.
    pub hibernation: bool,
    /// True for a whole machine without a hypervisor.
    pub bare_metal: bool,
}

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// 32-bit x86.
    I386,
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Arm64,
}

impl Architecture {
    /// EC2's name of the architecture.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::I386 => "i386",
            Architecture::X86_64 => "x86_64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// Parses EC2's name of an architecture.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::I386, Self::X86_64, Self::Arm64].into_iter().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The network of an instance type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// EC2's description, for example `Up to 12.5 Gigabit`.
    pub label: &'static str,
    /// Baseline bandwidth in Gbit/s.
    pub baseline_gbps: f64,
    /// Burst bandwidth in Gbit/s.
    pub peak_gbps: f64,
    /// The maximum number of network interfaces.
    pub max_interfaces: u32,
    /// The maximum number of IPv4 addresses per interface.
    pub ipv4_per_interface: u32,
}

/// Bandwidth to EBS volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EbsBandwidth {
    /// Baseline bandwidth in Mbit/s.
    pub baseline_mbps: u32,
    /// Burst bandwidth in Mbit/s.
    pub maximum_mbps: u32,
    /// Baseline IOPS.
    pub baseline_iops: u32,
    /// Burst IOPS.
    pub maximum_iops: u32,
}

/// Instance-store disks, which are lost when the instance stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceStore {
    /// The number of disks.
    pub disks: u32,
    /// The size of each disk in GB.
    pub disk_gb: u32,
    /// The kind of disk.
    pub kind: DiskKind,
}

impl InstanceStore {
    /// The total size in GB.
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

/// The kind of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// Rotating disk.
    Hdd,
    /// Solid-state disk.
    Ssd,
}

impl DiskKind {
    /// EC2's name: `hdd`, `ssd`.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskKind::Hdd => "hdd",
            DiskKind::Ssd => "ssd",
        }
    }

    /// The display name.
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
    /// The number of GPUs.
    pub count: u32,
    /// The manufacturer.
    pub manufacturer: &'static str,
    /// The model.
    pub model: &'static str,
    /// Memory of each GPU in MiB.
    pub memory_mib: u64,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} × {} {}", self.count, self.manufacturer, self.model))
    }
}

/// CPU credits of a burstable type. One credit is one vCPU at 100 % for one minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuCredits {
    /// Credits earned per hour.
    pub per_hour: f64,
    /// The accrual limit in credits.
    pub maximum: f64,
    /// The baseline utilization per vCPU in percent.
    pub baseline_percent: f64,
}

/// The reason why a type that exists in EC2 cannot run here on any host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLaunchable {
    /// A whole machine without a hypervisor.
    #[error("it is bare metal, and Wisp runs virtual machines")]
    BareMetal,
    /// The type has GPUs.
    #[error("it has GPUs, and Wisp gives its guests none")]
    Gpu,
    /// The processors have another architecture.
    #[error("its processors are Arm, and Wisp runs x86_64 guests")]
    Architecture,
}

impl NotLaunchable {
    /// A word or two for a table.
    pub fn brief(self) -> &'static str {
        match self {
            NotLaunchable::BareMetal => "bare metal",
            NotLaunchable::Gpu => "GPU",
            NotLaunchable::Architecture => "Arm",
        }
    }
}

impl InstanceType {
    /// The family: everything before the dot, for example `c6i`.
    pub fn family(&self) -> &'static str {
        self.parts.family
    }

    /// The size of each instance-store disk in GB; empty for a type with EBS storage only.
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

    /// The hypervisor in EC2; none for bare metal.
    pub fn ec2_hypervisor(&self) -> Option<&'static str> {
        match self.family() {
            _ if self.bare_metal => None,
            // The catalog's last families from before the Nitro system.
            "t2" | "i3" | "p3" => Some("xen"),
            _ => Some("nitro"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2::catalogue;

    fn launchable(name: &str) -> Result<(), NotLaunchable> {
        catalogue::find(name).expect(name).launchable()
    }

    #[test]
    fn metal_gpu_and_arm_are_refused_with_the_reason() {
        assert_eq!(launchable("t3.micro"), Ok(()));
        assert_eq!(launchable("t2.micro"), Ok(()));
        assert_eq!(launchable("m7i.metal-24xl"), Err(NotLaunchable::BareMetal));
        assert_eq!(launchable("g4dn.metal"), Err(NotLaunchable::BareMetal));
        assert_eq!(launchable("p3.2xlarge"), Err(NotLaunchable::Gpu));
        assert_eq!(launchable("t4g.micro"), Err(NotLaunchable::Architecture));
    }

    #[test]
    fn the_disks_of_a_type_are_listed_one_by_one() {
        let disks = |name| catalogue::find(name).expect(name).instance_store();
        assert_eq!(disks("i3.4xlarge"), [1900, 1900]);
        assert_eq!(disks("t3.micro"), [0; 0]);
    }

    #[test]
    fn types_from_before_nitro_are_known() {
        let hypervisor = |name| catalogue::find(name).expect(name).ec2_hypervisor();
        assert_eq!(hypervisor("t2.nano"), Some("xen"));
        assert_eq!(hypervisor("t3.nano"), Some("nitro"));
        assert_eq!(hypervisor("c5.metal"), None);
    }
}
