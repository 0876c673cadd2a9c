//! An instance type: how much of everything an instance gets, and whether Wisp can run one.

use std::fmt;

use super::type_name::{Category, TypeName};

/// One row of EC2's catalogue. Bandwidths and disk sizes are decimal, memory is binary, as there.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceType {
    /// The name, taken apart.
    pub parts: TypeName<'static>,
    /// The whole name: `c6i.2xlarge`.
    pub name: &'static str,
    /// What its family is made for.
    pub category: Category,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Virtual CPUs that share a core of the machine.
    pub threads_per_core: u32,
    /// Memory.
    pub memory_mib: u64,
    /// What its processors run.
    pub architectures: Vec<Architecture>,
    /// Its network.
    pub network: Network,
    /// Its path to EBS volumes; none where EC2 does not reserve one.
    pub ebs: Option<EbsBandwidth>,
    /// Disks that live and die with the instance.
    pub instance_store: Option<InstanceStore>,
    /// Its GPUs.
    pub gpu: Option<Gpu>,
    /// The CPU credits of a burstable type.
    pub credits: Option<CpuCredits>,
    /// Whether it can hibernate.
    pub hibernation: bool,
    /// Whether it is a whole machine without a hypervisor.
    pub bare_metal: bool,
}

/// What a processor runs.
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
    /// The name that EC2 uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::I386 => "i386",
            Architecture::X86_64 => "x86_64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// The architecture that EC2 calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::I386, Self::X86_64, Self::Arm64].into_iter().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An instance type's network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// EC2's words for it: `Up to 12.5 Gigabit`.
    pub label: &'static str,
    /// Gigabits a second that it always has.
    pub baseline_gbps: f64,
    /// Gigabits a second that it reaches for a while.
    pub peak_gbps: f64,
    /// Network interfaces it can have.
    pub max_interfaces: u32,
    /// IPv4 addresses each of them can have.
    pub ipv4_per_interface: u32,
}

/// Bandwidth to EBS volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EbsBandwidth {
    /// Megabits a second that it always has.
    pub baseline_mbps: u32,
    /// Megabits a second that it reaches for a while.
    pub maximum_mbps: u32,
    /// Operations a second that it always has.
    pub baseline_iops: u32,
    /// Operations a second that it reaches for a while.
    pub maximum_iops: u32,
}

/// Disks that live and die with the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceStore {
    /// How many disks.
    pub disks: u32,
    /// The size of each, in GB.
    pub disk_gb: u32,
    /// What they are.
    pub kind: DiskKind,
}

impl InstanceStore {
    /// The size of all disks together, in GB.
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

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// Rotating.
    Hdd,
    /// Solid state.
    Ssd,
}

impl DiskKind {
    /// The name that EC2 uses: `hdd`, `ssd`.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskKind::Hdd => "hdd",
            DiskKind::Ssd => "ssd",
        }
    }

    /// The name for people.
    pub fn title(self) -> &'static str {
        match self {
            DiskKind::Hdd => "HDD",
            DiskKind::Ssd => "SSD",
        }
    }
}

/// GPUs, all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// How many.
    pub count: u32,
    /// Who makes them.
    pub manufacturer: &'static str,
    /// What they are called.
    pub model: &'static str,
    /// Memory of each.
    pub memory_mib: u64,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} × {} {}", self.count, self.manufacturer, self.model))
    }
}

/// How a burstable type earns and keeps CPU credits. One credit is one vCPU busy for one minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuCredits {
    /// Credits it earns in an hour.
    pub per_hour: f64,
    /// Credits it can save.
    pub maximum: f64,
    /// How busy each vCPU can be, in per cent, without spending more than it earns.
    pub baseline_percent: f64,
}

/// Why a type that exists cannot run here, whatever the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLaunchable {
    /// It is a whole machine.
    #[error("it is bare metal, and Wisp runs virtual machines")]
    BareMetal,
    /// It has GPUs.
    #[error("it has GPUs, and Wisp gives its guests none")]
    Gpu,
    /// Its processors run something else.
    #[error("its processors are Arm, and Wisp runs x86_64 guests")]
    Architecture,
}

impl NotLaunchable {
    /// The reason in a word or two, for a table.
    pub fn brief(self) -> &'static str {
        match self {
            NotLaunchable::BareMetal => "bare metal",
            NotLaunchable::Gpu => "GPU",
            NotLaunchable::Architecture => "Arm",
        }
    }
}

impl InstanceType {
    /// Everything before the dot: `c6i`.
    pub fn family(&self) -> &'static str {
        self.parts.family
    }

    /// The size of each disk of its own, in GB: none for a type without, whose storage is EBS volumes only.
    pub fn instance_store(&self) -> Vec<u64> {
        let Some(store) = self.instance_store else { return Vec::new() };
        (0..store.disks).map(|_| store.disk_gb.into()).collect()
    }

    /// Whether Wisp could run it on a host that is large enough.
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

    /// The hypervisor that EC2 runs it under: none for bare metal.
    pub fn ec2_hypervisor(&self) -> Option<&'static str> {
        match self.family() {
            _ if self.bare_metal => None,
            // The last families from before the Nitro system that the catalogue has.
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
