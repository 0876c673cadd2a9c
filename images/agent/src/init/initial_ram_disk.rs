//! Support for root file systems without Wisp, where this program is `/init` in an initramfs.
//!
//! It mounts the root that the kernel's command line names, with an overlay in memory if the file system is read-only.
//! It copies itself to the root's `/run` and makes the root's own init process 1. For systemd, it adds a unit
//! that starts the agent; before a different init, it starts the agent itself. Without an init, it remains process 1.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use wisp_agent::agent::{self, Children, IdentityChange};

use super::command_line::{CommandLine, Root};
use super::mounts;

/// The program that the kernel runs from an initramfs.
pub const PROGRAM: &str = "/init";
/// Mount point of the new root until the switch. The kernel's built-in initramfs has this directory, others may not.
const ROOT: &str = "/root";
/// File systems of images, in the order in which they are tried.
const FILE_SYSTEMS: [&str; 3] = ["ext4", "squashfs", "erofs"];
/// Those that are read-only. They are mounted on `LOWER`, as the lower layer of an overlay.
const READ_ONLY: [&str; 2] = ["squashfs", "erofs"];
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
/// Init programs that the kernel tries (init/main.c), except the shell.
const INITS: [&str; 3] = ["/sbin/init", "/etc/init", "/bin/init"];
const AGENT_DIRECTORY: &str = "/run/wisp";
const AGENT: &str = "/run/wisp/wisp-init";
/// Directory of runtime units (systemd.unit(5)).
const UNITS: &str = "/run/systemd/system";
const UNIT: &str = "wisp-agent.service";
const UNIT_TEXT: &str = "\
[Unit]
Description=Wisp guest agent
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
ExecStart=/run/wisp/wisp-init --agent
Restart=always
OOMPolicy=continue
TasksMax=infinity
";
const NETWORK_UNIT: &str = "wisp-network.service";
/// Ordered after the services that manage networks, and before those that need a network.
const NETWORK_UNIT_TEXT: &str = "\
[Unit]
Description=Wisp network configuration, unless already configured
After=network.target systemd-networkd.service NetworkManager.service networking.service dhcpcd.service connman.service
Before=network-online.target

[Service]
Type=oneshot
ExecStart=/run/wisp/wisp-init --network
";
/// File that Docker leaves in a container's root.
const DOCKER_MARK: &str = "/.dockerenv";

/// Switches to the root and runs its init. Returns if the root has no init. Exits on failure, and the kernel panics.
pub fn enter_root() {
    if let Err(error) = try_enter_root() {
        eprintln!("wisp-init: {error}");
        exit(1);
    }
}

fn try_enter_root() -> Result<(), String> {
    mounts::mount_kernel();
    let command_line = CommandLine::read();
    let root = command_line.root.as_ref().ok_or("the kernel's command line has no root=")?;
    mount_root(root)?;
    if let Err(error) = bring_agent() {
        eprintln!("wisp-init: cannot install the agent: {error}");
    }
    switch_root().map_err(|errno| format!("cannot switch to the root {}: {errno}", root.device))?;
    if command_line.hostname.is_some() {
        super::set_hostname(&command_line);
    }
    // Otherwise, systemd assumes that it is running in a container.
    let _ = fs::remove_file(DOCKER_MARK);
    if let Some(instance_id) = &command_line.instance_id {
        agent::renew_identity(&Children::new(false), instance_id, IdentityChange::Boot);
    }
    if let Some(init) = find_init(&command_line) {
        return Err(run_init(&init, &command_line));
    }
    eprintln!("wisp-init: the root file system has no init: tried {}", INITS.join(", "));
    Ok(())
}

fn mount_root(root: &Root) -> Result<(), String> {
    let kinds = root.file_system.as_deref().map_or(FILE_SYSTEMS.to_vec(), |kind| vec![kind]);
    let mut last = Errno::INVAL;
    for kind in &kinds {
        match mount_root_as(kind, root) {
            Ok(()) => return Ok(()),
            Err(errno) => last = errno,
        }
    }
    Err(format!("cannot mount {} as {}: {last}", root.device, kinds.join(", ")))
}

fn mount_root_as(kind: &str, root: &Root) -> rustix::io::Result<()> {
    make_directory(ROOT)?;
    let device = root.device.as_str();
    if root.read_only {
        return mount(device, ROOT, kind, MountFlags::RDONLY, None);
    }
    if !READ_ONLY.contains(&kind) {
        return mount(device, ROOT, kind, MountFlags::empty(), None);
    }
    make_directory(LOWER)?;
    mount(device, LOWER, kind, MountFlags::RDONLY, None)?;
    make_directory(UPPER)?;
    mount("tmpfs", UPPER, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
    // overlayfs requires both on the same file system (linux/Documentation/filesystems/overlayfs.rst).
    make_directory("/upper/files")?;
    make_directory("/upper/work")?;
    let layers = c"lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";
    mount("overlay", ROOT, "overlay", MountFlags::empty(), Some(layers))
}

fn make_directory(path: &str) -> rustix::io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(errno) if errno != Errno::EXIST => Err(errno),
        _ => Ok(()),
    }
}

fn bring_agent() -> io::Result<()> {
    let run = format!("{ROOT}/run");
    // If a read-only root lacks the directory, the mount reports it.
    let _ = make_directory(&run);
    mount("tmpfs", run.as_str(), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    fs::create_dir(format!("{ROOT}{AGENT_DIRECTORY}"))?;
    fs::copy(PROGRAM, format!("{ROOT}{AGENT}"))?;
    // The initramfs stays mounted under the root, so remove its copy to save memory.
    fs::remove_file(PROGRAM)
}

fn switch_root() -> rustix::io::Result<()> {
    // Give the new root the kernel's file systems, if it has the directories.
    for target in ["/dev", "/proc", "/sys"] {
        let _ = make_directory(&format!("{ROOT}{target}"));
        let _ = mount_move(target, format!("{ROOT}{target}"));
    }
    rustix::process::chdir(ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

fn find_init(command_line: &CommandLine) -> Option<PathBuf> {
    let asked = command_line.init.as_deref();
    asked.into_iter().chain(INITS).map(PathBuf::from).find(|path| path.is_file())
}

/// Executes `init` in this process. Returns the error if that fails.
fn run_init(init: &Path, command_line: &CommandLine) -> String {
    // If the image has cloud-init, it configures the network. Otherwise, under systemd, our network unit runs after the
    // image's own network services and does nothing if one of them has configured it.
    let network = command_line.network.as_ref().filter(|_| !agent::has_cloud_init(Path::new("/")));
    let started = if is_systemd(init) {
        add_units(Path::new(UNITS), network.is_some())
    } else {
        if let Some(Err(error)) = network.map(agent::configure_network) {
            eprintln!("wisp-init: cannot configure the network: {error}");
        }
        start_agent()
    };
    if let Err(error) = started {
        eprintln!("wisp-init: cannot start the agent: {error}");
    }
    let error = Command::new(init).args(std::env::args_os().skip(1)).exec();
    format!("cannot run {}: {error}", init.display())
}

fn is_systemd(init: &Path) -> bool {
    init.canonicalize().is_ok_and(|path| path.ends_with("systemd/systemd"))
}

fn add_units(units: &Path, with_network: bool) -> io::Result<()> {
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    let network = with_network.then_some((NETWORK_UNIT, NETWORK_UNIT_TEXT));
    for (name, text) in [(UNIT, UNIT_TEXT)].into_iter().chain(network) {
        fs::write(units.join(name), text)?;
        symlink(format!("../{name}"), wanted.join(name))?;
    }
    Ok(())
}

fn start_agent() -> io::Result<()> {
    Command::new(AGENT).arg("--agent").process_group(0).spawn().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_wanted_by_the_multi_user_target() {
        let dir = tempfile::tempdir().unwrap();
        add_units(dir.path(), false).unwrap();
        let wanted = |name: &str| dir.path().join("multi-user.target.wants").join(name);
        assert_eq!(fs::read_to_string(wanted(UNIT)).unwrap(), UNIT_TEXT);
        assert!(!wanted(NETWORK_UNIT).exists());
        let dir = tempfile::tempdir().unwrap();
        add_units(dir.path(), true).unwrap();
        let text = fs::read_to_string(dir.path().join("multi-user.target.wants").join(NETWORK_UNIT)).unwrap();
        assert!(text.contains("wisp-init --network"), "{text}");
    }
}
