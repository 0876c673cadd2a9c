//! The files that a machine can open once its VMM is in the sandbox.
//!
//! `/dev/kvm` and the disks' files are opened before that. Disks and overlays added later are passed as descriptors
//! (see [`control`](machine::control)). The VMM cannot reopen any of these, or write to a shared backing file.

use std::path::{Path, PathBuf};

use machine::config::MachineConfig;
use machine::launch::Restore;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// All access to a directory and its content, except executing files and creating or controlling device files.
    Own,
    /// Reading a file, or a directory and its content.
    Read,
    Write,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub path: PathBuf,
    pub access: Access,
}

/// Directories come before their content. Grants inside a directory with [`Access::Own`] are omitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants(Vec<Grant>);

impl Grants {
    /// Returns the grants of a VMM that runs `config` and writes to the directory `own`. The rest of the instance's
    /// directory, such as its configuration and locks, is accessible only to the supervisor and the commands.
    pub fn of(own: &Path, config: &MachineConfig, restore: Option<&Restore>) -> Grants {
        let mut all = vec![
            // Information about the process itself, such as the resident pages of its memory.
            Grant { path: "/proc/self".into(), access: Access::Read },
            Grant { path: own.to_path_buf(), access: Access::Own },
        ];
        let mut add = |path: &Path, access| all.push(Grant { path: path.to_path_buf(), access });
        if let Some(Restore { dir, once }) = restore {
            add(dir, if *once { Access::Own } else { Access::Read });
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
            let is_inside = |dir: &Grant| dir.access == Access::Own && grant.path.starts_with(&dir.path);
            if kept.contains(&grant) || kept.iter().any(is_inside) {
                continue;
            }
            kept.push(grant);
        }
        Grants(kept)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::config::{BootProtocol, CpuConfig, KernelConfig, VsockConfig};

    #[test]
    fn grants_of_instance_are_its_vmm_directory_and_single_files() {
        let kernel = KernelConfig {
            path: "/h/images/a/vmlinux".into(),
            initrd: None,
            cmdline: String::new(),
            identity_options: String::new(),
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
        let restore = Restore { dir: "/h/instances/i-1/vmm/hibernated".into(), once: true };
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
    fn grants_inside_own_directory_are_merged() {
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
