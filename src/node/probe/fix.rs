//! Finds the commands that fix each cause of unusable KVM. Does no I/O.

use serde::Serialize;

use super::access::KvmAccessError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Fix {
    pub purpose: &'static str,
    /// Shell command, ready to paste.
    pub command: String,
}

impl Fix {
    pub(super) fn new(purpose: &'static str, command: impl Into<String>) -> Self {
        Fix { purpose, command: command.into() }
    }
}

impl KvmAccessError {
    /// Returns commands that fix the error or help diagnose it: alternatives, best first, or steps in order.
    pub fn fixes(&self) -> Vec<Fix> {
        match self {
            Self::NoVirtualization { .. } => {
                vec![Fix::new("Reboot into the firmware setup", "systemctl reboot --firmware-setup")]
            }
            Self::NoNestedVirtualization => vec![
                Fix::new("On a KVM host with Intel CPUs", reload_nested("kvm_intel")),
                Fix::new("On a KVM host with AMD CPUs", reload_nested("kvm_amd")),
                Fix::new("On a VirtualBox host", "VBoxManage modifyvm NAME --nested-hw-virt on"),
            ],
            Self::ModuleNotLoaded { module } => vec![
                Fix::new("Until the next reboot", format!("sudo modprobe {module}")),
                Fix::new("At every boot", format!("echo {module} | sudo tee /etc/modules-load.d/kvm.conf")),
            ],
            Self::NotInContainer | Self::Forbidden { in_container: true } => {
                vec![Fix::new("Start the container with the device", "docker run --device /dev/kvm IMAGE")]
            }
            Self::NodeMissing => {
                vec![Fix::new("Recreate the device node", "sudo mknod -m 0660 /dev/kvm c 10 232")]
            }
            Self::NotInGroup { group, user } => {
                vec![join_group(group, user), access_list(user)]
            }
            Self::StaleLogin { group, .. } => {
                vec![Fix::new("In this terminal (or log out and back in)", format!("newgrp {}", shell_word(group)))]
            }
            Self::RootOnly { user, has_kvm_group, .. } => root_only_fixes(user, *has_kvm_group),
            Self::Forbidden { in_container: false } => {
                vec![Fix::new("Find out what denies access", "sudo journalctl -k --grep=denied")]
            }
            Self::MissingCapabilities(_) | Self::WrongApiVersion { .. } => {
                vec![Fix::new("Upgrade the kernel", "sudo apt full-upgrade && sudo reboot")]
            }
            Self::Busy { rivals } => vec![busy_fix(rivals)],
            Self::OpenFailed(_) | Self::CreateVmFailed(_) => {
                vec![Fix::new("Show the kernel's messages about KVM", "sudo dmesg | grep -i kvm")]
            }
        }
    }
}

fn join_group(group: &str, user: &str) -> Fix {
    let (group, user) = (shell_word(group), shell_word(user));
    Fix::new("Permanently", format!("sudo usermod -aG {group} {user} && newgrp {group}"))
}

fn access_list(user: &str) -> Fix {
    let user = shell_word(user);
    Fix::new("Until the next reboot", format!("sudo setfacl -m u:{user}:rw /dev/kvm"))
}

fn root_only_fixes(user: &str, has_kvm_group: bool) -> Vec<Fix> {
    let mut fixes = Vec::new();
    if !has_kvm_group {
        fixes.push(Fix::new("Create the group", "sudo groupadd --system kvm"));
    }
    fixes.extend([
        Fix::new("Give the group access", "sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm"),
        Fix::new(
            "Give the group access at every boot",
            "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' \
             | sudo tee /etc/udev/rules.d/65-kvm.rules",
        ),
        Fix::new("Join the group", join_group("kvm", user).command),
        Fix::new("Alternative to all of the above, until the next reboot", access_list(user).command),
    ]);
    fixes
}

fn reload_nested(module: &str) -> String {
    format!("sudo modprobe -r {module} && sudo modprobe {module} nested=1")
}

fn busy_fix(rivals: &[&str]) -> Fix {
    match rivals {
        ["vboxdrv", ..] => {
            Fix::new("After shutting down its virtual machines", "sudo modprobe -r vboxnetflt vboxnetadp vboxdrv")
        }
        ["vmmon", ..] => Fix::new("After shutting down its virtual machines", "sudo modprobe -r vmmon"),
        _ => Fix::new("List the loaded modules", "lsmod"),
    }
}

/// Quotes a word for the shell. User names from a directory service can contain a backslash.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_shell_would_change_is_quoted() {
        assert_eq!(shell_word("ann-1"), "ann-1");
        assert_eq!(shell_word(r"CORP\ann"), r"'CORP\ann'");
        assert_eq!(shell_word("o'hara"), r"'o'\''hara'");
    }

    #[test]
    fn busy_cpu_fix_unloads_known_rival() {
        let command =
            |rivals: &[&'static str]| KvmAccessError::Busy { rivals: rivals.to_vec() }.fixes()[0].command.clone();
        assert_eq!(command(&["vboxdrv"]), "sudo modprobe -r vboxnetflt vboxnetadp vboxdrv");
        assert_eq!(command(&["vmmon"]), "sudo modprobe -r vmmon");
        assert_eq!(command(&[]), "lsmod");
    }
}
