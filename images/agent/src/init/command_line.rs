//! Init's options on the kernel's command line.

use std::fs;

use wisp_agent::network::Network;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    pub hostname: Option<String>,
    pub instance_id: Option<String>,
    /// `wisp.console=shell`: keep a shell on the serial console.
    pub console_shell: bool,
    /// `wisp.seed`: the host has a seed for this guest.
    pub seed: bool,
    pub network: Option<Network>,
    pub init: Option<String>,
    pub root: Option<Root>,
}

/// The root file system, which init mounts instead of the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Root {
    pub device: String,
    pub file_system: Option<String>,
    /// True for `ro`, unless `rw` follows it.
    pub read_only: bool,
}

impl CommandLine {
    /// Reads `/proc/cmdline`. If that fails, no option is set.
    pub fn read() -> Self {
        fs::read("/proc/cmdline").map(|bytes| Self::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut line = Self::default();
        let mut root = Root::default();
        for word in text.split_ascii_whitespace() {
            match word.split_once('=').unwrap_or((word, "")) {
                ("wisp.seed", _) => line.seed = true,
                ("wisp.hostname", name) => line.hostname = Some(name.to_owned()),
                ("wisp.instance", id) => line.instance_id = Some(id.to_owned()),
                ("wisp.network", value) => line.network = Network::parse(value),
                ("wisp.console", "shell") => line.console_shell = true,
                ("init", path) => line.init = Some(path.to_owned()),
                ("root", device) => device.clone_into(&mut root.device),
                ("rootfstype", kind) => root.file_system = Some(kind.to_owned()),
                ("ro", _) => root.read_only = true,
                ("rw", _) => root.read_only = false,
                _ => {}
            }
        }
        line.root = Some(root).filter(|root| !root.device.is_empty());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_are_ignored() {
        let line = CommandLine::parse(
            "console=ttyS0 wisp.hostname=ip-10-0-0-5 wisp.console=shell wisp.seed wisp.instance=i-1\n",
        );
        let (hostname, instance_id) = (Some("ip-10-0-0-5".into()), Some("i-1".into()));
        let expected = CommandLine { hostname, instance_id, console_shell: true, seed: true, ..CommandLine::default() };
        assert_eq!(line, expected);
        assert_eq!(CommandLine::parse("quiet wisp.console=none"), CommandLine::default());
    }

    #[test]
    fn last_root_option_wins() {
        let line = CommandLine::parse("ro root=/dev/vda rw rootfstype=squashfs init=/bin/sh ro");
        let root = Root { device: "/dev/vda".into(), file_system: Some("squashfs".into()), read_only: true };
        assert_eq!((line.root, line.init.as_deref()), (Some(root), Some("/bin/sh")));
        assert_eq!(CommandLine::parse("rw rootfstype=ext4").root, None);
    }
}
