//! Parses the text files in which the kernel and the system report their state. Does no I/O.

use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub model: String,
    pub vendor: String,
    /// True if VT-x is present and enabled.
    pub has_vmx: bool,
    pub has_svm: bool,
    pub is_virtual: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    Always,
    /// Used only for memory for which a program requests them with madvise(2).
    OnRequest,
    Never,
}

/// Parses the first CPU in `/proc/cpuinfo`.
pub(super) fn cpuinfo(text: &str) -> Cpu {
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map_or("", |(_, value)| value.trim())
    };
    let has_flag = |flag: &str| field("flags").split(' ').any(|word| word == flag);
    Cpu {
        model: field("model name").to_owned(),
        vendor: field("vendor_id").to_owned(),
        has_vmx: has_flag("vmx"),
        has_svm: has_flag("svm"),
        is_virtual: has_flag("hypervisor"),
    }
}

pub(super) fn meminfo_mib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Returns the memory in MiB that a cgroup still allows, or `None` without a limit. Treats inactive file pages as free,
/// because the kernel reclaims them before an allocation fails.
pub(super) fn cgroup_room_mib(limit: &str, usage: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let usage: u64 = usage.trim().parse().ok()?;
    let droppable = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| matches!(*name, "inactive_file" | "total_inactive_file"))
        .and_then(|(_, bytes)| bytes.trim().parse().ok())
        .unwrap_or(0_u64);
    Some(limit.saturating_sub(usage.saturating_sub(droppable)) / (1024 * 1024))
}

/// Parses `/sys/kernel/mm/transparent_hugepage/enabled`, for example `always [madvise] never`: brackets mark the mode.
pub(super) fn huge_pages(text: &str) -> Option<HugePages> {
    let chosen = text.split_once('[')?.1.split_once(']')?.0;
    match chosen {
        "always" => Some(HugePages::Always),
        "madvise" => Some(HugePages::OnRequest),
        "never" => Some(HugePages::Never),
        _ => None,
    }
}

pub(super) fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))?;
    user.first().map(|name| (*name).to_owned())
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    pub(super) id: u32,
    members: &'a str,
}

impl Group<'_> {
    pub(super) fn has_member(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

pub(super) fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse().ok()?;
        let members = fields.next()?.trim();
        Some(Group { name, id, members })
    })
}

/// See [`super::data_directory`]. Ignores empty variables and a relative `XDG_DATA_HOME`, as the XDG base directory
/// specification requires.
pub(super) fn data_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("WISP_HOME")
        .or_else(|| Some(path("XDG_DATA_HOME").filter(|home| home.is_absolute())?.join("wisp")))
        .or_else(|| Some(path("HOME")?.join(".local/share/wisp")))
}

/// Parses a cache size from `/sys`, such as `32768K`. Returns bytes.
pub fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kib_is_parsed_to_bytes() {
        assert_eq!(kib("512K\n"), Some(512 << 10));
        assert_eq!((kib("512"), kib("")), (None, None));
    }

    #[test]
    fn cpuinfo_is_parsed_with_flags() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: the first\n\
                    flags\t\t: fpu vmx hypervisor\n\nprocessor\t: 1\nmodel name\t: another\n";
        let cpu = cpuinfo(text);
        assert_eq!(cpu.model, "Xeon: the first");
        assert_eq!(cpu.vendor, "GenuineIntel");
        assert!(cpu.has_vmx && !cpu.has_svm && cpu.is_virtual);
    }

    #[test]
    fn cpu_flag_matches_whole_word() {
        let cpu = cpuinfo("flags\t: vmx_extra svmx\nvmx flags\t: svm\n");
        assert!(!cpu.has_vmx && !cpu.has_svm);
        assert_eq!(cpuinfo("").model, "");
    }

    #[test]
    fn meminfo_is_parsed_in_mib() {
        let text = "MemTotal:       24684380 kB\nMemAvailable:   24281208 kB\n";
        assert_eq!(meminfo_mib(text, "MemAvailable"), Some(23_712));
        assert_eq!(meminfo_mib(text, "Mem"), None);
    }

    #[test]
    fn cgroup_room_counts_inactive_file_pages_as_free() {
        const GIB: u64 = 1 << 30;
        let stat = format!("anon 5\ninactive_file {GIB}\n");
        let limit = (4 * GIB).to_string();
        let usage = (3 * GIB).to_string();
        assert_eq!(cgroup_room_mib(&limit, &usage, &stat), Some(2048));
        assert_eq!(cgroup_room_mib(&limit, &usage, ""), Some(1024));
        assert_eq!(cgroup_room_mib("0", &usage, ""), Some(0));
        assert_eq!(cgroup_room_mib("max\n", &usage, ""), None);
    }

    #[test]
    fn huge_page_mode_is_parsed_from_brackets() {
        assert_eq!(huge_pages("always [madvise] never\n"), Some(HugePages::OnRequest));
        assert_eq!(huge_pages("[always] madvise never\n"), Some(HugePages::Always));
        assert_eq!(huge_pages("always madvise [never]\n"), Some(HugePages::Never));
        assert_eq!(huge_pages("always"), None);
    }

    #[test]
    fn users_and_groups_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 7), None);
        let text = "root:x:0:\nkvm:x:104:bob,ann\nbroken\n";
        let kvm = groups(text).find(|group| group.name == "kvm").expect("it exists");
        assert_eq!(kvm.id, 104);
        assert!(kvm.has_member("ann") && !kvm.has_member("an") && !kvm.has_member(""));
    }

    #[test]
    fn data_directory_follows_environment() {
        let directory = |variables: &[(&str, &str)]| {
            data_directory(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        let home = ("HOME", "/home/ann");
        let xdg = ("XDG_DATA_HOME", "/data");
        assert_eq!(directory(&[home]), Some("/home/ann/.local/share/wisp".into()));
        assert_eq!(directory(&[home, xdg]), Some("/data/wisp".into()));
        assert_eq!(directory(&[home, xdg, ("WISP_HOME", "/w")]), Some("/w".into()));
        let relative = ("XDG_DATA_HOME", "data");
        assert_eq!(directory(&[home, relative, ("WISP_HOME", "")]), Some("/home/ann/.local/share/wisp".into()));
        assert_eq!(directory(&[]), None);
    }
}
