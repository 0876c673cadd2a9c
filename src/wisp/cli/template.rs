//! Starts the creation of templates in the background.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use ec2::capacity::InstanceSize;
use machine::environment;

/// Starts `wisp image warm` for an image and a size in the background, with the lowest priority. The caller's command
/// succeeds even if that fails.
pub fn prepare_in_background(image: Option<&str>, size: &InstanceSize) {
    let mut command = Command::new("/proc/self/exe");
    environment::restrict(&mut command);
    command.arg0("wisp").args(["image", "warm"]);
    command.args(["--type", size.instance_type.name, "--vcpus", &size.vcpus.to_string()]);
    command.args(["--memory", &format!("{}M", size.memory_mib), "--overcommit", "--if-missing"]);
    // An image name may start with a dash.
    command.args(["--", image.unwrap_or("tiny")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec, only setsid and setpriority are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // If the priority cannot be lowered, create the template anyway.
            let _ = rustix::process::nice(19);
            Ok(())
        });
    }
    match command.spawn() {
        // Reap it if it exits before this process does, which may be a server.
        Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
        Err(error) => log::info!("cannot start `wisp image warm`: {error}"),
    }
}
