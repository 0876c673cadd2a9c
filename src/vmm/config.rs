//! What a machine is made of: plain data, written as JSON beside the instance, validated before anything is built.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::limits::{CpuBudgetConfig, DiskLimits, NetLimits};
use super::link::MacAddress;
use super::virtio::block::KERNEL_THREADS;

/// The most virtual CPUs that a machine can have: what the embedded kernel is built for.
pub const MAX_VCPUS: u32 = 64;
/// The least memory that a machine can have, in MiB: below it the embedded kernel and its agent do not fit.
pub const MIN_MEMORY_MIB: u64 = 64;
/// The most disks that a machine can have: what is left of the interrupt lines, see `vmm/wiring.rs`.
pub const MAX_DISKS: usize = 12;

/// The least that an IPv4 network carries at once (RFC 791).
pub const MIN_MTU: u16 = 68;

/// Everything that [`Machine::new`](crate::vmm::Machine::new) needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Virtual CPUs and their topology.
    pub cpus: CpuConfig,
    /// Guest memory, in MiB.
    pub memory_mib: u64,
    /// What boots.
    pub kernel: KernelConfig,
    /// Block devices in the order in which the guest sees them: `/dev/vda`, `/dev/vdb` ...
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// How many disks there can be at a time, if more than there are in the beginning: the others can be put in while the
    /// machine runs.
    #[serde(default)]
    pub disk_slots: usize,
    /// The vsock device, if there is to be one.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// The network device, if there is to be one.
    #[serde(default)]
    pub net: Option<NetConfig>,
    /// What its firmware says that it is, if anything.
    #[serde(default)]
    pub identity: Option<SystemIdentity>,
    /// How much CPU time its vCPUs may have, if that is limited.
    #[serde(default)]
    pub cpu_budget: Option<CpuBudgetConfig>,
    /// What those of its disks that are limited may do together, if that is.
    #[serde(default)]
    pub disk_limits: Option<DiskLimits>,
}

/// What a machine is called in its SMBIOS tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemIdentity {
    /// Who made it, its firmware, its board and its chassis.
    pub manufacturer: String,
    /// The product's name.
    pub product: String,
    /// Its UUID, which is its serial number too; the most significant byte first.
    pub uuid: [u8; 16],
    /// What its owner calls its board.
    pub asset_tag: String,
}

/// Virtual CPUs: one socket, `count / threads_per_core` cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// How many, 1 to [`MAX_VCPUS`].
    pub count: u32,
    /// 1 or 2; `count` must be a multiple of it.
    pub threads_per_core: u32,
}

/// A kernel, what it is told and how it is entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// An ELF `vmlinux` or a `bzImage`.
    pub path: PathBuf,
    /// An initial RAM disk, in any format that the kernel unpacks.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Options of the image or of the user; the machine's own are added by [`crate::vmm::boot::cmdline`].
    #[serde(default)]
    pub cmdline: String,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// Whether the kernel knows `wisp.software_kvm`, with which it does without what KVM cannot emulate.
    #[serde(default)]
    pub software_kvm_aware: bool,
}

/// The ways into a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// PVH where an ELF kernel has the note for it, else the 64-bit Linux boot protocol.
    #[default]
    Auto,
    /// The 64-bit entry of the Linux boot protocol (`Documentation/arch/x86/boot.rst`).
    Linux64,
    /// Xen's PVH direct boot; the kernel must have the note.
    Pvh,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// What `get-id` answers; the guest shows it as the disk's serial number. 20 bytes at most.
    pub id: String,
    /// The image file.
    pub path: PathBuf,
    /// The file's format.
    pub format: DiskFormat,
    /// Backing files of a qcow2 image, the topmost first. Nothing else is opened, whatever the image's header names.
    #[serde(default)]
    pub backing: Vec<BackingFile>,
    /// What may be written, and what becomes of it.
    pub access: DiskAccess,
    /// Whether the guest's root file system is on it.
    #[serde(default)]
    pub root: bool,
    /// For a machine that goes on from a saved one: the id of the disk there whose place it takes, if that is another.
    #[serde(default)]
    pub was: Option<String>,
    /// What it may do, if that is limited.
    #[serde(default)]
    pub limits: Option<DiskLimits>,
}

/// A file that a qcow2 image has for its unallocated clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
}

/// The formats of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAccess {
    /// Writes reach the file.
    ReadWrite,
    /// Writes are refused; the device says that it is read-only.
    ReadOnly,
    /// Writes go to a copy-on-write layer that is gone when the machine ends; the file is never written.
    Ephemeral,
}

/// The vsock device: streams between guest and host without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// A file that a guest reads when it connects to port [`wisp_agent::seed::SEED_PORT`] of the host: what it is told
    /// at its first boot.
    #[serde(default)]
    pub seed: Option<PathBuf>,
}

/// The network device. What it is connected to comes with the machine's [surroundings](crate::vmm::machine::Surroundings).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The guest's Ethernet address.
    pub mac: MacAddress,
    /// Bytes of the largest IP packet, [`MIN_MTU`] or more.
    pub mtu: u16,
    /// A file with the [`LinkConfig`](super::link::LinkConfig) that the link's services go by, if it has any.
    #[serde(default)]
    pub link: Option<PathBuf>,
    /// What may pass through it, if that is limited.
    #[serde(default)]
    pub limits: Option<NetLimits>,
}

/// Why a configuration cannot make a machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The vCPU count is out of range.
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    CpuCount(u32),
    /// The topology does not divide.
    #[error("{threads_per_core} threads per core do not divide {count} vCPUs; 1 or 2 are possible")]
    Topology {
        /// vCPUs asked for.
        count: u32,
        /// Threads per core asked for.
        threads_per_core: u32,
    },
    /// Too little memory.
    #[error("a machine needs at least {MIN_MEMORY_MIB} MiB of memory, not {0} MiB")]
    Memory(u64),
    /// Too many disks.
    #[error("a machine has at most {MAX_DISKS} disks, not {0}")]
    DiskCount(usize),
    /// A disk's id does not fit into virtio-blk's 20 bytes.
    #[error("the disk id {0:?} is longer than the 20 bytes that virtio-blk has for it")]
    DiskId(String),
    /// More than one root.
    #[error("{0} disks are marked as the root; at most one can be")]
    Roots(usize),
    /// CIDs 0 to 2 are taken (virtio 1.2, section 5.10.4).
    #[error("the vsock context id {0} is reserved; a guest's is 3 or more")]
    Cid(u32),
    /// Too small an MTU.
    #[error("a network's largest packet has {MIN_MTU} bytes or more, not {0}")]
    Mtu(u16),
    /// An address that no interface can have.
    #[error("{0} is the address of a group, not of an interface")]
    GroupAddress(MacAddress),
    /// A limit that nothing could ever pass.
    #[error("{0} cannot be limited so: a rate is at least 1, and no peak is below its baseline")]
    Limits(&'static str),
}

impl DiskConfig {
    /// Files of the disk, the image first. Only the image can be open for writing.
    pub fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        let image = (self.path.as_path(), self.access == DiskAccess::ReadWrite);
        std::iter::once(image).chain(self.backing.iter().map(|file| (file.path.as_path(), false)))
    }

    /// Checks what can be checked without touching the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.id.len() > 20 {
            return Err(ConfigError::DiskId(self.id.clone()));
        }
        if self.limits.iter().all(DiskLimits::is_sound) { Ok(()) } else { Err(ConfigError::Limits("a disk")) }
    }
}

impl MachineConfig {
    /// The most threads and processes that a monitor of this machine has at a time: one for each vCPU and device, what the
    /// kernel starts for a disk, its own few, and those that save it.
    pub fn threads(&self) -> u64 {
        let disk = 1 + u64::from(KERNEL_THREADS);
        u64::from(self.cpus.count) + self.all_disk_slots() as u64 * disk + 24
    }

    /// Slots for disks: those that are taken in the beginning, and those that are free.
    pub fn all_disk_slots(&self) -> usize {
        self.disks.len().max(self.disk_slots)
    }

    /// Checks what can be checked without touching the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let CpuConfig { count, threads_per_core } = self.cpus;
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(ConfigError::CpuCount(count));
        }
        if !matches!(threads_per_core, 1 | 2) || count % threads_per_core != 0 {
            return Err(ConfigError::Topology { count, threads_per_core });
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.all_disk_slots() > MAX_DISKS {
            return Err(ConfigError::DiskCount(self.all_disk_slots()));
        }
        self.disks.iter().try_for_each(DiskConfig::validate)?;
        let roots = self.disks.iter().filter(|disk| disk.root).count();
        if roots > 1 {
            return Err(ConfigError::Roots(roots));
        }
        if !self.cpu_budget.iter().all(CpuBudgetConfig::is_sound) {
            return Err(ConfigError::Limits("vCPUs"));
        }
        if !self.disk_limits.iter().all(DiskLimits::is_sound) {
            return Err(ConfigError::Limits("disks"));
        }
        match (&self.vsock, &self.net) {
            (_, Some(NetConfig { limits: Some(limits), .. })) if !limits.bytes.is_sound() => {
                Err(ConfigError::Limits("a network"))
            }
            (Some(vsock), _) if vsock.cid < 3 => Err(ConfigError::Cid(vsock.cid)),
            (_, Some(net)) if net.mtu < MIN_MTU => Err(ConfigError::Mtu(net.mtu)),
            (_, Some(net)) if net.mac.0[0] & 1 != 0 => Err(ConfigError::GroupAddress(net.mac)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            cpus: CpuConfig { count: 2, threads_per_core: 2 },
            memory_mib: 256,
            kernel: KernelConfig {
                path: "vmlinux".into(),
                initrd: None,
                cmdline: String::new(),
                protocol: BootProtocol::Auto,
                software_kvm_aware: false,
            },
            disks: vec![],
            disk_slots: 0,
            vsock: None,
            net: None,
            cpu_budget: None,
            disk_limits: None,
            identity: None,
        }
    }

    #[test]
    fn a_sound_configuration_passes_and_survives_json() {
        let config = config();
        assert_eq!(config.validate(), Ok(()));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
    }

    #[test]
    fn vcpus_out_of_range_are_refused() {
        for count in [0, 65, u32::MAX] {
            let mut config = config();
            config.cpus = CpuConfig { count, threads_per_core: 1 };
            assert_eq!(config.validate(), Err(ConfigError::CpuCount(count)));
        }
    }

    #[test]
    fn a_topology_that_does_not_divide_is_refused() {
        let mut config = config();
        config.cpus = CpuConfig { count: 3, threads_per_core: 2 };
        assert_eq!(config.validate(), Err(ConfigError::Topology { count: 3, threads_per_core: 2 }));
    }

    #[test]
    fn too_little_memory_is_refused() {
        let mut config = config();
        config.memory_mib = 63;
        assert_eq!(config.validate(), Err(ConfigError::Memory(63)));
    }

    #[test]
    fn free_slots_count_as_disks() {
        let mut config = config();
        config.disk_slots = MAX_DISKS;
        assert_eq!(config.validate(), Ok(()));
        config.disk_slots += 1;
        assert_eq!(config.validate(), Err(ConfigError::DiskCount(MAX_DISKS + 1)));
    }

    #[test]
    fn reserved_context_ids_are_refused() {
        let mut config = config();
        config.vsock = Some(VsockConfig { cid: 2, seed: None });
        assert_eq!(config.validate(), Err(ConfigError::Cid(2)));
    }

    #[test]
    fn networks_that_cannot_be_are_refused() {
        let mut config = config();
        let mac = MacAddress([6, 0, 0, 0, 0, 1]);
        config.net = Some(NetConfig { mac, mtu: 9001, link: None, limits: None });
        assert_eq!(config.validate(), Ok(()));
        config.net = Some(NetConfig { mac, mtu: 67, link: None, limits: None });
        assert_eq!(config.validate(), Err(ConfigError::Mtu(67)));
        let mac = MacAddress([0xff; 6]);
        config.net = Some(NetConfig { mac, mtu: 1500, link: None, limits: None });
        assert_eq!(config.validate(), Err(ConfigError::GroupAddress(mac)));
    }
}
