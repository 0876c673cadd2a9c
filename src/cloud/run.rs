//! Ephemeral instances: their specification, and their start.

use std::path::{Path, PathBuf};

use super::error::CloudError;
use super::first_guest::{FirstGuest, LAYER, create_root_layer};
use super::limits::limit_as;
use super::network::{self, NetworkSpec};
use super::new_id;
use super::seed::identity_seed;
use super::template::Template;
use ec2::ErrorCode;
use ec2::InstanceType;
use ec2::id::InstanceId;
use ec2::network::NetworkMode;
use machine::config::{
    BackingFile, BootProtocol, CpuConfig, DiskAccess, DiskConfig, DiskFormat, KernelConfig, MachineConfig,
};
use node::home::Home;
use node::image::Image;
use node::instance::{EphemeralInstance, StartPlan};
use node::machine_config::{
    FREE_SLOTS, add_options, device, identity, image_kernel, layer_disk, machine, name_host, root_disk,
};

#[derive(Debug, Clone)]
pub struct RunSpec {
    pub cpus: CpuConfig,
    pub memory_mib: u64,
    pub boot: Boot,
    /// Additional disks, which follow the root disk in this order.
    pub disks: Vec<ExtraDisk>,
    pub cmdline: Option<String>,
    /// True if the guest's serial port is connected to the terminal.
    pub console: bool,
    /// `None` for a guest whose network device is disconnected.
    pub network: Option<NetworkSpec>,
    /// The instance type that sets the limits. `None` means no limits.
    pub limits: Option<&'static InstanceType>,
}

#[derive(Debug, Clone)]
pub enum Boot {
    /// An image. The guest's writes go to an overlay that is removed with the instance.
    Image(Box<Image>),
    /// A kernel. If there is no initrd and the command line has no `root=`, the first disk is the root disk.
    Kernel {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        protocol: BootProtocol,
        /// True if the kernel supports `wisp.software_kvm`, which makes it avoid operations that KVM cannot emulate.
        software_kvm_aware: bool,
    },
}

/// The state from which an ephemeral instance starts.
#[derive(Debug, Clone, Copy)]
enum Origin<'a> {
    Boot,
    /// A boot for a template, with the root disk's overlay (qcow2).
    First(&'a Path),
    Template(&'a Template),
}

/// A disk provided by the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraDisk {
    pub path: PathBuf,
    pub format: DiskFormat,
    /// Backing files of `path`, topmost first.
    pub backing: Vec<BackingFile>,
    pub read_only: bool,
}

impl RunSpec {
    /// Returns true if the guest can write to a disk that outlives it.
    pub fn writes_last(&self) -> bool {
        self.disks.iter().any(|disk| !disk.read_only)
    }

    /// Starts an instance: by restoring the template `warm`, or by a cold boot if it is `None`. `began_ns` is the
    /// monotonic start time of the user's command.
    pub fn start(&self, home: &Home, warm: Option<&Template>, began_ns: u64) -> Result<EphemeralInstance, CloudError> {
        self.check_network()?;
        let id = new_id();
        let (dir, lock) = EphemeralInstance::create_dir(home, id)?;
        let machine = self.machine(&id, warm.map_or(Origin::Boot, Origin::Template));
        let mut plan = StartPlan::new(dir, lock, machine, began_ns);
        plan.restore = warm.map(Template::restore);
        self.complete(&mut plan, id, warm.is_some());
        Ok(EphemeralInstance::start(plan, self.console)?)
    }

    /// Starts the first guest of an image, without its identity.
    pub fn start_first(&self, home: &Home, began_ns: u64) -> Result<FirstGuest, CloudError> {
        self.check_network()?;
        let image = match &self.boot {
            Boot::Image(image) => image.as_ref().clone(),
            Boot::Kernel { .. } => return Err(CloudError::NotWarm("the guest has no image".into())),
        };
        let id = new_id();
        let (dir, lock) = EphemeralInstance::create_dir(home, id)?;
        let layer = dir.path().join(LAYER);
        create_root_layer(&image, &layer).inspect_err(|_| drop(std::fs::remove_dir_all(dir.path())))?;
        let machine = self.machine(&id, Origin::First(&layer));
        let mut plan = StartPlan::new(dir, lock, machine, began_ns);
        plan.is_template = true;
        self.complete(&mut plan, id, true);
        Ok(FirstGuest { instance: EphemeralInstance::start(plan, self.console)?, image, layer })
    }

    fn check_network(&self) -> Result<(), CloudError> {
        if self.network.as_ref().is_none_or(|network| network.mode != NetworkMode::Vpc) {
            return Ok(());
        }
        let what = "An ephemeral instance cannot be in a VPC.";
        let hint = "Use `wisp launch --network vpc` to launch an instance in a VPC.";
        Err(CloudError::refused(ErrorCode::InvalidParameterCombination, what, Some(hint.into())))
    }

    /// Completes the plan with the identity, the network and the limits. A guest that does not get its identity from the
    /// kernel command line needs a seed.
    fn complete(&self, plan: &mut StartPlan, id: InstanceId, needs_seed: bool) {
        let image = if let Boot::Image(image) = &self.boot { Some(&image.manifest) } else { None };
        if let Some(image) = image.filter(|_| needs_seed) {
            plan.set_seed(identity_seed(id, image));
        }
        plan.machine.net = Some(device(id));
        if let Some(network) = &self.network {
            network::plan(plan, id, network::run_link(id, image, network), network.mode);
        }
        if let Some(instance_type) = self.limits {
            limit_as(&mut plan.machine, instance_type);
        }
    }

    fn machine(&self, id: &InstanceId, origin: Origin) -> MachineConfig {
        let (mut kernel, mut disks) = match &self.boot {
            Boot::Image(image) => {
                let root = match origin {
                    Origin::Boot => root_disk(image),
                    Origin::First(layer) => Some(layer_disk(image, layer, DiskAccess::ReadWrite)),
                    Origin::Template(template) => restored_root(image, template),
                };
                (image_kernel(image), root.into_iter().collect())
            }
            Boot::Kernel { kernel, initrd, protocol, software_kvm_aware } => {
                let (path, initrd) = (kernel.clone(), initrd.clone());
                let (protocol, software_kvm_aware) = (*protocol, *software_kvm_aware);
                let (cmdline, identity_options) = (String::new(), String::new());
                (KernelConfig { path, initrd, cmdline, identity_options, protocol, software_kvm_aware }, Vec::new())
            }
        };
        for (index, disk) in self.disks.iter().enumerate() {
            let access = if disk.read_only { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite };
            let config = DiskConfig::new(format!("disk{index}"), disk.path.clone(), disk.format, access);
            disks.push(DiskConfig { backing: disk.backing.clone(), ..config });
        }
        add_options(&mut kernel, self.cmdline.as_deref());
        if matches!(self.boot, Boot::Image(_)) {
            name_host(&mut kernel, id);
        } else if matches!(self.boot, Boot::Kernel { .. })
            && kernel.initrd.is_none()
            && !names_root(&kernel.cmdline)
            && !disks.is_empty()
        {
            disks[0].root = true;
        }
        // Instances restored from a template may attach volumes.
        let disk_slots = if matches!(origin, Origin::First(_)) { 1 + FREE_SLOTS } else { 0 };
        MachineConfig { disk_slots, ..machine(self.cpus, self.memory_mib, kernel, disks, identity(*id, "custom")) }
    }
}

/// Returns the root disk of an instance that is restored from a template.
fn restored_root(image: &Image, template: &Template) -> Option<DiskConfig> {
    let layer = template.layer().map(|layer| layer_disk(image, layer, DiskAccess::Ephemeral));
    let root = layer.or_else(|| root_disk(image))?;
    Some(DiskConfig { was: Some(template.root().into()), ..root })
}

fn names_root(cmdline: &str) -> bool {
    cmdline.split_whitespace().any(|option| option.starts_with("root="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(boot: Boot, disks: Vec<ExtraDisk>) -> RunSpec {
        let cpus = CpuConfig { count: 1, threads_per_core: 1 };
        RunSpec {
            cpus,
            memory_mib: 256,
            boot,
            disks,
            cmdline: Some("quiet".into()),
            console: false,
            network: None,
            limits: None,
        }
    }

    fn kernel(initrd: Option<&str>) -> Boot {
        let protocol = BootProtocol::Auto;
        Boot::Kernel {
            kernel: "vmlinux".into(),
            initrd: initrd.map(PathBuf::from),
            protocol,
            software_kvm_aware: false,
        }
    }

    fn id() -> InstanceId {
        InstanceId::from_random([7; 9])
    }

    #[test]
    fn first_disk_is_root_unless_kernel_has_initrd() {
        let disk = ExtraDisk { path: "d".into(), format: DiskFormat::Raw, backing: Vec::new(), read_only: true };
        let machine = spec(kernel(None), vec![disk.clone()]).machine(&id(), Origin::Boot);
        assert!(machine.disks[0].root);
        let machine = spec(kernel(Some("initrd")), vec![disk]).machine(&id(), Origin::Boot);
        assert!(!machine.disks[0].root);
        assert_eq!(machine.kernel.cmdline, "quiet");
    }
}
