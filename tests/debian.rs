//! A Debian guest, from the mirror to a command in it: the archive is made, an image is made of it, and systemd starts
//! the agent. It needs the network, /dev/kvm and, where guest kernels are emulated, some minutes.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Wisp;
use mkext4::reader::Fs;
use wisp::cloud::image::Image;
use wisp::cloud::import::root::{AgentFiles, RootOptions, import_root};

/// How long the guest may take until its agent answers, in seconds.
const BOOT: &str = "1500";
const UNIT: &str = "\
[Unit]
Description=Wisp agent
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
ExecStart=/usr/lib/wisp/wisp-init --agent
Restart=always

[Install]
WantedBy=multi-user.target
";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The embedded image's agent, in an initial RAM disk.
fn initramfs(embedded: &Path) -> Vec<u8> {
    let root = Fs::open(File::open(embedded.join("root.ext4")).unwrap()).unwrap();
    let agent = root.read_file(root.resolve("/sbin/wisp-init").unwrap()).unwrap();
    let mut archive = Vec::new();
    for (name, content) in [("init", agent.as_slice()), ("TRAILER!!!", b"")] {
        // The fields of a newc header: inode, mode, ..., size (7th), ..., the name's size (12th), ...
        let mut fields = [0; 13];
        (fields[1], fields[6], fields[11]) = (0o100_755, content.len(), name.len() + 1);
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        for part in [format!("{name}\0").as_bytes(), content] {
            archive.extend(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    }
    archive
}

#[test]
fn debian_boots_to_the_agent_under_systemd() {
    let wisp = Wisp::new();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("debian.tar");
    let made = Command::new(repository().join("scripts/debian-image")).arg(&archive).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let image = folder.path().join("image");
    std::fs::create_dir(&image).unwrap();
    let options = RootOptions {
        name: "debian-12".into(),
        description: "Debian bookworm".into(),
        default_user: "root".into(),
        cmdline: "quiet".into(),
        size: None,
    };
    let embedded = Image::open(&wisp.bundle()).unwrap();
    let initramfs = initramfs(&embedded.folder);
    let agent = AgentFiles { initramfs: &initramfs, unit: UNIT };
    let manifest = import_root(&archive, &options, &embedded, &agent, &image, &()).unwrap();
    assert_eq!(manifest.initrd, None, "systemd starts the agent");

    let script = "cat /proc/1/comm; . /etc/os-release; echo $VERSION_CODENAME";
    let image = image.to_str().unwrap();
    let arguments = ["run", image, "--memory", "1G", "--timeout", BOOT, "--", "/bin/sh", "-c", script];
    let ran = wisp.command(&arguments).output().unwrap();
    assert_eq!(
        (String::from_utf8_lossy(&ran.stdout).as_ref(), ran.status.code()),
        ("systemd\nbookworm\n", Some(0)),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(wisp.runs().is_empty(), "nothing is left");
}
