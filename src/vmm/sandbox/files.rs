//! The files that a machine has: what its monitor can still reach when it has given up the rest.
//!
//! `/dev/kvm` and the files of disks are open before that. Disks that are attached later, and layers, are passed to the
//! monitor as open descriptors (see [`control`](crate::vmm::control)). None of them can be opened again: once a layer is
//! shared, the monitor has no way to write to it.

use std::path::{Path, PathBuf};

use crate::vmm::config::MachineConfig;
use crate::vmm::machine::Restore;

/// What may be done with a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything but execution, with all that is in the folder.
    Own,
    /// Reading the file, or all that is in the folder.
    Read,
    /// Reading and writing the file.
    Write,
}

/// One file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Where it is.
    pub path: PathBuf,
    /// What may be done with it.
    pub access: Access,
}

/// All of them, folders before what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants(Vec<Grant>);

impl Grants {
    /// Those of the machine of `config` whose VMM writes into the directory `own`. Nothing else in the instance's directory
    /// is among them: the configuration, the locks and the files of the link are the supervisor's and the commands'. What
    /// cannot be looked into is left out: the machine that cannot do without it says so when it misses it.
    pub fn of(own: &Path, config: &MachineConfig, restore: Option<&Restore>) -> Grants {
        let mut all = vec![
            // What the process is told of itself: its memory, and which pages of it are resident.
            Grant { path: "/proc/self".into(), access: Access::Read },
            Grant { path: own.to_path_buf(), access: Access::Own },
        ];
        let mut add = |path: &Path, access| all.push(Grant { path: path.to_path_buf(), access });
        if let Some(Restore { folder, once }) = restore {
            add(folder, if *once { Access::Own } else { Access::Read });
        }
        add(&config.kernel.path, Access::Read);
        let link = config.net.as_ref().and_then(|net| net.link.as_ref());
        let seed = config.vsock.as_ref().and_then(|vsock| vsock.seed.as_ref());
        for path in config.kernel.initrd.iter().chain(link).chain(seed) {
            add(path, Access::Read);
        }
        Grants::new(all)
    }

    fn new(mut all: Vec<Grant>) -> Grants {
        all.sort_by_key(|grant| grant.path.components().count());
        let mut kept: Vec<Grant> = Vec::with_capacity(all.len());
        for grant in all {
            let is_inside = |folder: &Grant| folder.access == Access::Own && grant.path.starts_with(&folder.path);
            if kept.contains(&grant) || kept.iter().any(is_inside) {
                continue;
            }
            kept.push(grant);
        }
        Grants(kept)
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::config::{BootProtocol, CpuConfig, KernelConfig, VsockConfig};

    #[test]
    fn grants_of_instance_are_its_vmm_directory_and_single_files() {
        let kernel = KernelConfig {
            path: "/h/images/a/vmlinux".into(),
            initrd: None,
            cmdline: String::new(),
            protocol: BootProtocol::Auto,
            software_kvm_aware: true,
        };
        let config = MachineConfig {
            cpus: CpuConfig { count: 1, threads_per_core: 1 },
            memory_mib: 64,
            kernel,
            disks: Vec::new(),
            disk_slots: 0,
            vsock: Some(VsockConfig { cid: 3, seed: Some("/h/instances/i-1/seed".into()) }),
            net: None,
            identity: None,
            cpu_budget: None,
            disk_limits: None,
        };
        let restore = Restore { folder: "/h/instances/i-1/vmm/hibernated".into(), once: true };
        let grants = Grants::of(Path::new("/h/instances/i-1/vmm"), &config, Some(&restore));
        let outside: Vec<_> = grants.iter().map(|grant| (grant.path.to_str().unwrap(), grant.access)).collect();
        assert_eq!(
            outside,
            [
                ("/proc/self", Access::Read),
                ("/h/instances/i-1/vmm", Access::Own),
                ("/h/images/a/vmlinux", Access::Read),
                ("/h/instances/i-1/seed", Access::Read),
            ]
        );
    }

    #[test]
    fn what_is_in_a_folder_of_one_s_own_is_not_named_again() {
        let grant = |path: &str, access| Grant { path: path.into(), access };
        let grants = Grants::new(vec![
            grant("/h/volumes/vol", Access::Write),
            grant("/h/i/a/seed", Access::Read),
            grant("/h/i/a", Access::Own),
            grant("/h/volumes/vol", Access::Write),
        ]);
        let paths: Vec<_> = grants.iter().map(|grant| grant.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/h/volumes/vol", "/h/i/a"]);
    }
}
