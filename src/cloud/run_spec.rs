//! What `wisp run` runs, and the machine that it becomes; what of it is the same for launched instances.

use std::path::{Path, PathBuf};

use super::image::Image;
use super::layers::resolved;
use super::machine::{FREE_SLOTS, with_kernel_share};
use super::network::{self, NetworkSpec};
use super::warm::{self, Warm};
use crate::ec2::InstanceType;
use crate::ec2::id::InstanceId;
use crate::ec2::system;
use crate::vmm::config::{
    BackingFile, BootProtocol, CpuConfig, DiskAccess, DiskConfig, DiskFormat, KernelConfig, MachineConfig,
    SystemIdentity, VsockConfig,
};

/// The guest's context id; each monitor has a vsock device of its own, so that all can be the same.
pub(super) const GUEST_CID: u32 = 3;
/// The name of what a guest is told of who it is.
pub(super) const SEED: &str = "seed";

/// What is to run.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// vCPUs and their topology.
    pub cpus: CpuConfig,
    /// Guest memory, in MiB.
    pub memory_mib: u64,
    /// What boots.
    pub boot: Boot,
    /// Further disks, in order.
    pub disks: Vec<ExtraDisk>,
    /// Options for the kernel command line, behind the image's.
    pub cmdline: Option<String>,
    /// Whether the serial port gets a terminal.
    pub console: bool,
    /// Its network, unless it is for nobody.
    pub network: Option<NetworkSpec>,
    /// The type whose limits it has; without, it may have all that the host has.
    pub limits: Option<&'static InstanceType>,
}

/// What boots.
#[derive(Debug, Clone)]
pub enum Boot {
    /// An image: its root file system gets a layer that is gone with the instance.
    Image(Box<Image>),
    /// An image, for nobody: what the guest writes stays in the layer at this path, and it gets no name.
    Nobody {
        /// Which.
        image: Box<Image>,
        /// The layer (qcow2).
        layer: PathBuf,
    },
    /// A kernel, with or without an initrd; the first disk is the root if there is no initrd.
    Kernel {
        /// The kernel's file.
        kernel: PathBuf,
        /// The initrd's.
        initrd: Option<PathBuf>,
        /// How it is entered.
        protocol: BootProtocol,
        /// Whether it is built to be emulated too.
        software_kvm_aware: bool,
    },
}

/// A disk that the user brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraDisk {
    /// Its image's file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Backing files, the topmost first.
    pub backing: Vec<BackingFile>,
    /// Whether it may be written.
    pub read_only: bool,
}

impl RunSpec {
    /// Whether the guest can write something that outlives it.
    pub fn writes_last(&self) -> bool {
        self.disks.iter().any(|disk| !disk.read_only)
    }

    /// The machine, with its seed in `folder`; if it goes on from a warm one, over that one's layer.
    pub(super) fn machine(&self, id: &InstanceId, folder: &Path, warm: Option<&Warm>) -> MachineConfig {
        let (mut kernel, mut disks) = match &self.boot {
            Boot::Nobody { image, layer } => {
                (image_kernel(image), vec![layer_disk(image, layer, DiskAccess::ReadWrite)])
            }
            Boot::Image(image) => {
                let layer = warm.and_then(Warm::layer).map(|layer| layer_disk(image, layer, DiskAccess::Ephemeral));
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
        let seed = warm.map(|_| folder.join(SEED));
        let vsock = Some(VsockConfig { cid: GUEST_CID, seed });
        let memory_mib = with_kernel_share(self.memory_mib);
        // Who goes on from it may attach volumes.
        let disk_slots = if matches!(self.boot, Boot::Nobody { .. }) { 1 + FREE_SLOTS } else { 0 };
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

/// An image's kernel.
pub(super) fn image_kernel(image: &Image) -> KernelConfig {
    let manifest = &image.manifest;
    KernelConfig {
        path: image.folder.join(&manifest.kernel.file),
        initrd: manifest.initrd.as_ref().map(|entry| image.folder.join(&entry.file)),
        cmdline: manifest.kernel.cmdline.clone(),
        protocol: manifest.kernel.protocol,
        software_kvm_aware: manifest.kernel.software_kvm_aware,
    }
}

/// An image's root file system, with a layer over it that is gone with the machine.
fn root_disk(image: &Image) -> Option<DiskConfig> {
    image.manifest.root.as_ref().map(|root| DiskConfig {
        id: "root".into(),
        path: image.folder.join(&root.file),
        format: root.format,
        access: DiskAccess::Ephemeral,
        root: true,
        backing: Vec::new(),
        was: None,
        limits: None,
    })
}

/// A root disk that is a layer already, over the image's root file system.
fn layer_disk(image: &Image, layer: &Path, access: DiskAccess) -> DiskConfig {
    let root = image.manifest.root.iter();
    DiskConfig {
        id: warm::ROOT.into(),
        path: resolved(layer.to_path_buf()),
        format: DiskFormat::Qcow2,
        backing: root
            .map(|root| BackingFile { path: resolved(image.folder.join(&root.file)), format: root.format })
            .collect(),
        access,
        root: true,
        was: None,
        limits: None,
    }
}

/// Adds a user's options to the kernel's.
pub(super) fn add_options(kernel: &mut KernelConfig, options: Option<&str>) {
    if let Some(options) = options {
        kernel.cmdline = format!("{} {options}", kernel.cmdline).trim().to_string();
    }
}

/// What the firmware of an instance of this type says.
pub(super) fn identity(id: InstanceId, instance_type: &str) -> SystemIdentity {
    SystemIdentity {
        manufacturer: system::MANUFACTURER.into(),
        product: instance_type.into(),
        uuid: system::system_uuid(id),
        asset_tag: id.to_string(),
    }
}

/// What a guest calls itself: something short, and different for each instance.
pub(super) fn host_name(id: &InstanceId) -> String {
    let mut name = id.to_string();
    name.truncate(10);
    name
}

/// Tells the guest its host name, and which instance it is.
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
    fn a_kernel_s_first_disk_is_its_root_unless_it_has_an_initrd() {
        let disk = ExtraDisk { path: "d".into(), format: DiskFormat::Raw, backing: Vec::new(), read_only: true };
        let machine = spec(kernel(None), vec![disk.clone()]).machine(&id(), Path::new("/f"), None);
        assert!(machine.disks[0].root);
        let machine = spec(kernel(Some("initrd")), vec![disk]).machine(&id(), Path::new("/f"), None);
        assert!(!machine.disks[0].root);
        assert_eq!(machine.kernel.cmdline, "quiet");
    }
}
