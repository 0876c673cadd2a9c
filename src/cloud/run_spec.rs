//! The specification of an ephemeral instance, and its translation to a machine configuration.

use std::path::{Path, PathBuf};

use super::image::Image;
use super::layers::resolved;
use super::machine::{FREE_SLOTS, with_kernel_share};
use super::network::{self, NetworkSpec};
use super::template::{self, Template};
use ec2::InstanceType;
use ec2::id::InstanceId;
use ec2::system;
use machine::config::{
    BackingFile, BootProtocol, CpuConfig, DiskAccess, DiskConfig, DiskFormat, KernelConfig, MachineConfig,
    SystemIdentity, VsockConfig,
};

/// The guest's vsock context ID. Each VMM has its own vsock device, so all guests can have the same one.
pub(super) const GUEST_CID: u32 = 3;
pub(super) const SEED: &str = "seed";

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
    /// `None` for a template.
    pub network: Option<NetworkSpec>,
    /// The instance type that sets the limits. `None` means no limits.
    pub limits: Option<&'static InstanceType>,
}

#[derive(Debug, Clone)]
pub enum Boot {
    /// An image. The guest's writes go to an overlay that is removed with the instance.
    Image(Box<Image>),
    /// An image, booted for a template. The guest has no host name, and its writes are kept in the overlay.
    Template {
        image: Box<Image>,
        /// The overlay (qcow2).
        layer: PathBuf,
    },
    /// A kernel. If there is no initrd and the command line has no `root=`, the first disk is the root disk.
    Kernel {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        protocol: BootProtocol,
        /// True if the kernel supports `wisp.software_kvm`, which makes it avoid operations that KVM cannot emulate.
        software_kvm_aware: bool,
    },
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

    /// Returns the machine configuration. If the instance is restored from the template `warm`, its root disk starts
    /// from the template's overlay, and it gets the seed in `dir`.
    pub(super) fn machine(&self, id: &InstanceId, dir: &Path, warm: Option<&Template>) -> MachineConfig {
        let (mut kernel, mut disks) = match &self.boot {
            Boot::Template { image, layer } => {
                (image_kernel(image), vec![layer_disk(image, layer, DiskAccess::ReadWrite)])
            }
            Boot::Image(image) => {
                let layer = warm.and_then(Template::layer).map(|layer| layer_disk(image, layer, DiskAccess::Ephemeral));
                let mut root = layer.or_else(|| root_disk(image));
                if let (Some(root), Some(warm)) = (&mut root, warm) {
                    root.was = Some(warm.root().into());
                }
                (image_kernel(image), root.into_iter().collect())
            }
            Boot::Kernel { kernel, initrd, protocol, software_kvm_aware } => {
                let (path, initrd) = (kernel.clone(), initrd.clone());
                let (protocol, software_kvm_aware) = (*protocol, *software_kvm_aware);
                (KernelConfig { path, initrd, cmdline: String::new(), protocol, software_kvm_aware }, Vec::new())
            }
        };
        for (index, disk) in self.disks.iter().enumerate() {
            let access = if disk.read_only { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite };
            let id = format!("disk{index}");
            disks.push(DiskConfig {
                id,
                path: disk.path.clone(),
                format: disk.format,
                backing: disk.backing.clone(),
                access,
                root: false,
                was: None,
                limits: None,
            });
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
        let seed = warm.map(|_| dir.join(SEED));
        let vsock = Some(VsockConfig { cid: GUEST_CID, seed });
        let memory_mib = with_kernel_share(self.memory_mib);
        // Instances restored from a template may attach volumes.
        let disk_slots = if matches!(self.boot, Boot::Template { .. }) { 1 + FREE_SLOTS } else { 0 };
        MachineConfig {
            cpus: self.cpus,
            memory_mib,
            kernel,
            disks,
            disk_slots,
            vsock,
            net: Some(network::device(*id, None)),
            cpu_budget: None,
            disk_limits: None,
            identity: Some(identity(*id, "custom")),
        }
    }
}

pub(super) fn image_kernel(image: &Image) -> KernelConfig {
    let manifest = &image.manifest;
    KernelConfig {
        path: image.dir.join(&manifest.kernel.file),
        initrd: manifest.initrd.as_ref().map(|entry| image.dir.join(&entry.file)),
        cmdline: manifest.kernel.cmdline.clone(),
        protocol: manifest.kernel.protocol,
        software_kvm_aware: manifest.kernel.software_kvm_aware,
    }
}

/// Returns an image's root file system as a disk, with an overlay that is removed with the machine.
fn root_disk(image: &Image) -> Option<DiskConfig> {
    image.manifest.root.as_ref().map(|root| DiskConfig {
        id: "root".into(),
        path: image.dir.join(&root.file),
        format: root.format,
        access: DiskAccess::Ephemeral,
        root: true,
        backing: Vec::new(),
        was: None,
        limits: None,
    })
}

fn layer_disk(image: &Image, layer: &Path, access: DiskAccess) -> DiskConfig {
    let root = image.manifest.root.iter();
    DiskConfig {
        id: template::ROOT.into(),
        path: resolved(layer.to_path_buf()),
        format: DiskFormat::Qcow2,
        backing: root
            .map(|root| BackingFile { path: resolved(image.dir.join(&root.file)), format: root.format })
            .collect(),
        access,
        root: true,
        was: None,
        limits: None,
    }
}

pub(super) fn add_options(kernel: &mut KernelConfig, options: Option<&str>) {
    if let Some(options) = options {
        kernel.cmdline = format!("{} {options}", kernel.cmdline).trim().to_string();
    }
}

/// Returns the system identity that the firmware reports to the guest.
pub(super) fn identity(id: InstanceId, instance_type: &str) -> SystemIdentity {
    SystemIdentity {
        manufacturer: system::MANUFACTURER.into(),
        product: instance_type.into(),
        uuid: system::system_uuid(id),
        asset_tag: id.to_string(),
    }
}

/// Returns a short host name: the start of the instance ID, which rarely occurs twice.
pub(super) fn host_name(id: &InstanceId) -> String {
    let mut name = id.to_string();
    name.truncate(10);
    name
}

/// Adds the guest's host name and the instance ID to the kernel command line.
pub(super) fn name_host(kernel: &mut KernelConfig, id: &InstanceId) {
    kernel.cmdline.push_str(&format!(" wisp.hostname={} wisp.instance={id}", host_name(id)));
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
        let machine = spec(kernel(None), vec![disk.clone()]).machine(&id(), Path::new("/f"), None);
        assert!(machine.disks[0].root);
        let machine = spec(kernel(Some("initrd")), vec![disk]).machine(&id(), Path::new("/f"), None);
        assert!(!machine.disks[0].root);
        assert_eq!(machine.kernel.cmdline, "quiet");
    }
}
