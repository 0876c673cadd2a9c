//! Instance size options that several subcommands share.

use ec2::capacity::{self, InstanceSize};
use ec2::catalog;
use ec2::size::MemorySize;
use ec2::{Ec2Error, InstanceType};
use node::image_memory::ImageMemory;
use node::probe;

/// The base type if --type is not given. Its vCPUs and memory are both overridden.
const OVERRIDDEN_TYPE: &str = "t2.nano";

/// An instance type and overrides.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SizeArgs {
    /// Instance type (see `wisp types`).
    #[arg(long = "type", value_name = "TYPE")]
    pub instance_type: Option<String>,

    /// Number of vCPUs, instead of the instance type's number.
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u32>,

    /// Memory size, instead of the instance type's: 256M, 2G or a number of MiB.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,

    /// Allow an instance with more vCPUs than this host has CPUs.
    #[arg(long, help_heading = super::args::ADVANCED)]
    pub overcommit: bool,
}

impl SizeArgs {
    /// Returns true if neither a type nor overrides are given.
    pub fn is_empty(&self) -> bool {
        self.instance_type.is_none() && self.vcpus.is_none() && self.memory.is_none()
    }

    /// Returns the type and the overrides as command line options, each preceded by a space.
    pub fn options(&self) -> String {
        let instance_type = self.instance_type.as_ref().map(|name| format!(" --type {name}"));
        let vcpus = self.vcpus.map(|count| format!(" --vcpus {count}"));
        let memory = self.memory.map(|size| format!(" --memory {}M", size.mib()));
        [instance_type, vcpus, memory].into_iter().flatten().collect()
    }

    /// Returns these options or, if neither a type nor overrides are given, the size of the image's saved memory.
    pub fn or_image_size(self, memory: Option<ImageMemory>) -> SizeArgs {
        let Some(memory) = memory.filter(|_| self.is_empty()) else { return self };
        let overridden = memory.overridden;
        SizeArgs {
            instance_type: Some(memory.instance_type),
            vcpus: overridden.then_some(memory.cpus.count),
            memory: MemorySize::from_mib(memory.memory_mib).filter(|_| overridden),
            overcommit: self.overcommit,
        }
    }

    /// Returns true if vCPUs or memory are overridden.
    pub fn overrides(&self) -> bool {
        self.vcpus.is_some() || self.memory.is_some()
    }

    /// Returns the requested size. Missing values come from `instance_type`.
    pub fn of_type(&self, instance_type: &'static InstanceType) -> Result<InstanceSize, Ec2Error> {
        let named = self.instance_type.as_deref().map(catalog::find).transpose()?;
        InstanceSize::new(named.unwrap_or(instance_type), self.vcpus, self.memory)
    }

    /// Returns the requested size. Missing values come from the type or, without a type, from the arguments.
    pub fn or_else(&self, vcpus: u32, memory_mib: u64) -> Result<InstanceSize, Ec2Error> {
        match &self.instance_type {
            Some(name) => InstanceSize::new(catalog::find(name)?, self.vcpus, self.memory),
            None => {
                let memory = self.memory.or_else(|| MemorySize::from_mib(memory_mib));
                InstanceSize::new(catalog::find(OVERRIDDEN_TYPE)?, Some(self.vcpus.unwrap_or(vcpus)), memory)
            }
        }
    }

    /// Checks that this host has capacity for the size.
    pub fn check(&self, request: &InstanceSize) -> Result<(), Ec2Error> {
        capacity::check(request, probe::resources(), self.overcommit)
    }
}
