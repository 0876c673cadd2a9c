//! Environment of Wisp's background processes: VMMs, supervisors, routers and network helpers.
//!
//! The environment of a user's shell may contain credentials, and a guest that compromises a VMM can read the VMM's
//! environment. Background processes therefore inherit only the variables in [`KEPT`].

use std::ffi::OsStr;
use std::process::Command;

pub const KEPT: [&str; 11] = [
    "PATH",
    "HOME",
    "USER",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "WISP_LOG",
    "LANG",
    "WISP_HOME",
    "WISP_WARM_LIMIT",
    "XDG_DATA_HOME",
    "TMPDIR",
];

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
        // Test runners set other variables in this process, such as CARGO_MANIFEST_DIR.
        assert!(std::env::vars_os().count() > KEPT.len());
        assert!(names.contains(&"PATH") && names.iter().all(|name| KEPT.contains(name)), "{names:?}");
    }
}
