//! The environment of the processes that Wisp leaves in the background: VMMs and their supervisors, routers, and the programs
//! that carry their traffic.
//!
//! A process keeps its environment in its memory, where a guest that has taken over a VMM can read it. A user's shell may hold
//! credentials in variables that no such process needs, so that each starts with an empty environment but for these.

use std::ffi::OsStr;
use std::process::Command;

/// Variables that a background process inherits.
pub const KEPT: [&str; 11] = [
    // To find programs, and what they call the user.
    "PATH",
    "HOME",
    "USER",
    // Logs.
    "RUST_LOG",
    "RUST_BACKTRACE",
    "WISP_LOG",
    // The language of programs' messages.
    "LANG",
    // Settings of this program.
    "WISP_HOME",
    "WISP_WARM_LIMIT",
    "XDG_DATA_HOME",
    // Where temporary files go.
    "TMPDIR",
];

/// Has `command` start with an empty environment but for the variables that background processes may have.
pub fn restrict(command: &mut Command) -> &mut Command {
    command.env_clear();
    let kept = KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.envs(kept.map(|(name, value)| (OsStr::new(*name), value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restricted_command_has_only_listed_variables() {
        let mut command = Command::new("env");
        command.env("AWS_SECRET_ACCESS_KEY", "secret").env("LD_PRELOAD", "/tmp/x.so");
        let output = restrict(&mut command).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        // Test runners set variables of their own in this process, such as CARGO_MANIFEST_DIR.
        assert!(std::env::vars_os().count() > KEPT.len());
        assert!(names.contains(&"PATH") && names.iter().all(|name| KEPT.contains(name)), "{names:?}");
    }
}
