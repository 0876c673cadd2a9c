//! The layers of a VMM's sandbox, as the VMM reports them.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::LOG;
use super::{bounded_log, untrusted};

/// Exit code of a VMM that made a forbidden system call.
pub const SECCOMP_EXIT_CODE: i32 = 159;
/// Prefix of the log line that names the forbidden system call.
pub const SECCOMP_LOG_PREFIX: &str = "seccomp violation: ";
/// Number of bytes at the end of the log to search for a message.
const LOG_TAIL: u64 = 64 << 10;
/// Maximum number of characters of a displayed log line.
const LONGEST_LINE: usize = 512;

/// Returns the last message in the log of the instance directory `dir` about a system call that the seccomp filter
/// denied.
pub fn violation(dir: &Path) -> Option<String> {
    let path = dir.join(LOG);
    // The log may have been rotated since the message was written.
    [path.clone(), bounded_log::full(&path)].iter().find_map(|path| {
        let log = untrusted::read_tail(path, LOG_TAIL).ok()?;
        let text = String::from_utf8_lossy(&log);
        let line = text.lines().rev().find(|line| line.starts_with(SECCOMP_LOG_PREFIX))?;
        // The VMM wrote the line, so it is not safe for a terminal.
        Some(line.chars().filter(|c| !c.is_control()).take(LONGEST_LINE).collect())
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxLayer {
    /// Executed programs cannot gain privileges.
    NoNewPrivileges,
    Seccomp,
    /// Resource limits are set and capabilities dropped.
    Limits,
    /// User, PID, IPC and UTS namespaces.
    Namespaces,
    NetworkNamespace,
    /// A root directory with only the machine's files.
    Files,
    Landlock,
}

impl fmt::Display for SandboxLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SandboxLayer::NoNewPrivileges => "no new privileges",
            SandboxLayer::Seccomp => "seccomp",
            SandboxLayer::Limits => "limits",
            SandboxLayer::Namespaces => "namespaces",
            SandboxLayer::NetworkNamespace => "network namespace",
            SandboxLayer::Files => "file system",
            SandboxLayer::Landlock => "Landlock",
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The VMM's process ID on the host. The status message has its supervisor's.
    pub pid: u32,
    pub layers: Vec<SandboxLayer>,
    /// Error messages about missing layers.
    pub missing: Vec<String>,
}

impl SandboxRecord {
    #[must_use]
    pub fn layers_text(&self) -> String {
        self.layers.iter().map(SandboxLayer::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for SandboxRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.layers_text())?;
        self.missing.iter().try_for_each(|missing| write!(f, "; {missing}"))
    }
}
