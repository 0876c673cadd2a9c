//! What the kernel's command line asks of init.

use std::fs;

/// The words that concern init.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `wisp.hostname=NAME`.
    pub hostname: Option<String>,
    /// `wisp.console=shell`: keep a shell on the serial console.
    pub console_shell: bool,
    /// `wisp.seed`: the host has a seed for this guest.
    pub seed: bool,
}

impl CommandLine {
    /// Reads `/proc/cmdline`; without it, nothing is asked.
    pub fn read() -> Self {
        fs::read("/proc/cmdline").map(|bytes| Self::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut line = Self::default();
        for word in text.split_ascii_whitespace() {
            if word == "wisp.seed" {
                line.seed = true;
            }
            match word.split_once('=') {
                Some(("wisp.hostname", name)) => line.hostname = Some(name.to_owned()),
                Some(("wisp.console", "shell")) => line.console_shell = true,
                _ => {}
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_passed_over() {
        let line =
            CommandLine::parse("console=ttyS0 root=/dev/vda wisp.hostname=ip-10-0-0-5 wisp.console=shell wisp.seed\n");
        assert_eq!(line, CommandLine { hostname: Some("ip-10-0-0-5".into()), console_shell: true, seed: true });
        assert_eq!(CommandLine::parse("quiet wisp.console=none"), CommandLine::default());
    }
}
