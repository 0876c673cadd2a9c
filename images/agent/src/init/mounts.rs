//! Mounts the kernel's file systems and the temporary ones.

use std::ffi::CStr;
use std::fs;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: Option<&'static CStr>,
}

const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const TEMPORARY: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const DEVICES: Mount =
    Mount { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: Some(c"mode=0755") };

/// File systems to mount, in this order: parents first.
const MOUNTS: [Mount; 7] = [
    Mount { kind: "proc", target: "/proc", flags: STRICT, options: None },
    Mount { kind: "sysfs", target: "/sys", flags: STRICT, options: None },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: STRICT, options: None },
    // Group 5 is `tty` on every Linux system; grantpt(3) expects it.
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: Some(c"gid=5,mode=620,ptmxmode=666"),
    },
    Mount { kind: "tmpfs", target: "/dev/shm", flags: TEMPORARY, options: Some(c"mode=1777") },
    Mount { kind: "tmpfs", target: "/run", flags: TEMPORARY, options: Some(c"mode=0755") },
    Mount { kind: "tmpfs", target: "/tmp", flags: TEMPORARY, options: Some(c"mode=1777") },
];

/// Links through which programs open their own descriptors. devtmpfs does not create them.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

pub fn mount_devices() {
    DEVICES.mount();
}

/// Mounts `/proc` and `/sys`. `switch_root` later moves them into the new root.
pub fn mount_kernel() {
    MOUNTS[..2].iter().for_each(Mount::mount);
}

/// Mounts all file systems. Reports failures on the console and continues.
pub fn mount_all() {
    for mount in &MOUNTS {
        mount.mount();
    }
    for (target, link) in LINKS {
        let _ = rustix::fs::symlink(target, link);
    }
}

impl Mount {
    fn mount(&self) {
        let mut outcome = self.try_mount();
        if outcome == Err(Errno::NOENT) {
            // The image or devtmpfs may lack the directory.
            let _ = rustix::fs::mkdir(self.target, Mode::from_raw_mode(0o755));
            outcome = self.try_mount();
        }
        match outcome {
            // BUSY: already mounted. NODEV: the kernel was built without this file system.
            Ok(()) | Err(Errno::BUSY | Errno::NODEV) => {}
            Err(errno) => eprintln!("wisp-init: cannot mount {} on {}: {errno}", self.kind, self.target),
        }
    }

    fn try_mount(&self) -> Result<(), Errno> {
        mount(self.kind, self.target, self.kind, self.flags, self.options)
    }
}

/// Unmounts block devices, the last mounted first, and makes the root read-only. The next mount then needs no recovery.
pub fn unmount_disks() {
    let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
    for target in disk_mount_points(&String::from_utf8_lossy(&mounts)).iter().rev() {
        if let Err(errno) = unmount(target.as_str(), UnmountFlags::NOFOLLOW) {
            eprintln!("wisp-init: cannot unmount {target}: {errno}");
            let _ = mount_remount(target.as_str(), MountFlags::RDONLY, c"");
        }
    }
    if let Err(errno) = mount_remount("/", MountFlags::RDONLY, c"") {
        eprintln!("wisp-init: cannot make the root file system read-only: {errno}");
    }
}

/// Returns the mount points of block devices other than the root, in mount order.
fn disk_mount_points(mounts: &str) -> Vec<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, target) = (fields.next()?, fields.next()?);
            (device.starts_with("/dev/") && target != "/").then(|| unescape(target))
        })
        .collect()
}

/// Decodes proc(5)'s octal escapes for space, tab, newline and backslash.
fn unescape(target: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(target.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_mount_points_exclude_root() {
        let mounts = "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/vdb /my\\040data ext4 rw 0 0\n";
        assert_eq!(disk_mount_points(mounts), ["/my data"]);
    }
}
