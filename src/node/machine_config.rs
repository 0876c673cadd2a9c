//! Builds the machine configurations of instances and of ephemeral instances.

use std::path::{Path, PathBuf};

use crate::home::Home;
use crate::host::{MachineShape, VolumeDisk, VolumeFiles};
use crate::image::Image;
use ec2::network::mac_address;
use ec2::{InstanceId, VolumeId, system};
use machine::config::{
    BackingFile, CpuConfig, DiskAccess, DiskConfig, DiskFormat, KernelConfig, MAX_DISKS, MachineConfig, NetConfig,
    SystemIdentity, VsockConfig,
};
use machine::network::MacAddress;

/// The guest's vsock context ID. Each VMM has its own vsock device, so all guests can have the same one.
const GUEST_CID: u32 = 3;
/// Number of free disk slots for hot-plugged volumes. Each adds a few thousand instructions to the guest's boot.
pub const FREE_SLOTS: usize = 4;
/// Disk ID of the root disk of an ephemeral instance and of a template.
pub const ROOT: &str = "root";

/// Maximum packet size in bytes, as within a VPC in EC2 (jumbo frames).
pub const MTU: u16 = 9001;

/// Returns an instance's machine configuration, without a network device and limits. `disks` are its volumes in the
/// order of its block devices, then its instance-store disks.
pub fn of_instance(
    id: InstanceId,
    shape: &MachineShape,
    image: &Image,
    mut disks: Vec<DiskConfig>,
    has_root: bool,
) -> MachineConfig {
    let mut kernel = image_kernel(image);
    add_options(&mut kernel, shape.cmdline.as_deref());
    name_host(&mut kernel, &id);
    if let Some(first) = disks.first_mut().filter(|_| has_root) {
        first.root = true;
    }
    let disk_slots = (disks.len() + FREE_SLOTS).min(MAX_DISKS);
    let identity = identity(id, &shape.instance_type);
    MachineConfig { disk_slots, ..machine(shape.cpus, shape.memory_mib, kernel, disks, identity) }
}

/// Returns a machine configuration without free disk slots, a network device and limits.
pub fn machine(
    cpus: CpuConfig,
    memory_mib: u64,
    kernel: KernelConfig,
    disks: Vec<DiskConfig>,
    identity: SystemIdentity,
) -> MachineConfig {
    MachineConfig {
        cpus,
        memory_mib: with_kernel_share(memory_mib),
        kernel,
        disks,
        disk_slots: 0,
        vsock: Some(VsockConfig { cid: GUEST_CID, seed: None }),
        net: None,
        identity: Some(identity),
        cpu_budget: None,
        disk_limits: None,
    }
}

/// Adds 8 MiB for the kernel to sizes from 512 MiB to below 1 GiB. This keeps `MemTotal` within 3% of the type's
/// memory; larger sizes need no correction.
fn with_kernel_share(memory_mib: u64) -> u64 {
    if (512..1024).contains(&memory_mib) { memory_mib + 8 } else { memory_mib }
}

/// Returns a volume's disk ID: `vol` and 17 digits, as in EC2. It fits into the 20 bytes of a virtio-blk serial number.
pub fn disk_id(volume: VolumeId) -> String {
    volume.to_string().replace('-', "")
}

pub fn volume_disk(home: &Home, disk: &VolumeDisk) -> DiskConfig {
    let path = resolved(home.volumes().join(&disk.files.file));
    let config = DiskConfig::new(disk_id(disk.volume), path, DiskFormat::Qcow2, DiskAccess::ReadWrite);
    DiskConfig { backing: backing_files(home, &disk.files), limits: disk.limits, ..config }
}

/// Returns the backing files of a volume or snapshot.
pub fn backing_files(home: &Home, files: &VolumeFiles) -> Vec<BackingFile> {
    let path = |file: &str| resolved(home.root().join(file));
    files.backing.iter().map(|layer| BackingFile { path: path(&layer.file), format: layer.format }).collect()
}

/// Resolves symbolic links, as in overlay headers. Returns the path unchanged if the file does not exist.
pub fn resolved(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap_or(path)
}

/// Returns the network device of an instance, without a netstack configuration and limits.
pub fn device(id: InstanceId) -> NetConfig {
    NetConfig { mac: MacAddress(mac_address(id)), mtu: MTU, link: None, limits: None }
}

/// Returns an image's root file system as a disk, with an overlay that is removed with the machine.
pub fn root_disk(image: &Image) -> Option<DiskConfig> {
    let root = image.manifest.root.as_ref()?;
    let disk = DiskConfig::new(ROOT, image.dir.join(&root.file), root.format, DiskAccess::Ephemeral);
    Some(DiskConfig { root: true, ..disk })
}

/// Returns an overlay over an image's root file system as a disk.
pub fn layer_disk(image: &Image, layer: &Path, access: DiskAccess) -> DiskConfig {
    let root = image.manifest.root.iter();
    let backing = root.map(|root| BackingFile { path: resolved(image.dir.join(&root.file)), format: root.format });
    let disk = DiskConfig::new(ROOT, resolved(layer.to_path_buf()), DiskFormat::Qcow2, access);
    DiskConfig { backing: backing.collect(), root: true, ..disk }
}

pub fn image_kernel(image: &Image) -> KernelConfig {
    let manifest = &image.manifest;
    KernelConfig {
        path: image.dir.join(&manifest.kernel.file),
        initrd: manifest.initrd.as_ref().map(|entry| image.dir.join(&entry.file)),
        cmdline: manifest.kernel.cmdline.clone(),
        identity_options: String::new(),
        protocol: manifest.kernel.protocol,
        software_kvm_aware: manifest.kernel.software_kvm_aware,
    }
}

pub fn add_options(kernel: &mut KernelConfig, options: Option<&str>) {
    if let Some(options) = options {
        kernel.cmdline = format!("{} {options}", kernel.cmdline).trim().to_string();
    }
}

/// Returns the system identity that the firmware reports to the guest.
pub fn identity(id: InstanceId, instance_type: &str) -> SystemIdentity {
    SystemIdentity {
        manufacturer: system::MANUFACTURER.into(),
        product: instance_type.into(),
        uuid: system::system_uuid(id),
        asset_tag: id.to_string(),
    }
}

/// Returns a short host name: the start of the instance ID, which rarely occurs twice.
pub fn host_name(id: &InstanceId) -> String {
    let mut name = id.to_string();
    name.truncate(10);
    name
}

/// Adds the guest's host name and the instance ID to the kernel command line.
pub fn name_host(kernel: &mut KernelConfig, id: &InstanceId) {
    kernel.identity_options.push_str(&format!("wisp.hostname={} wisp.instance={id}", host_name(id)));
}
