//! A Debian guest, from the mirror to a command in it: the archive is made, an image is made of it, and systemd starts
//! the agent. It needs the network, /dev/kvm and, where guest kernels are emulated, some minutes.

mod common;

use std::path::Path;
use std::process::Command;

use common::Wisp;

/// How long the guest may take until its agent answers, in seconds.
const BOOT: &str = "1500";

#[test]
fn debian_boots_under_systemd_with_the_agent_as_a_service_and_a_key_in_place() {
    let wisp = Wisp::new();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("debian.tar");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/debian-image");
    let made = Command::new(script).arg(&archive).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    wisp.run(&["image", "import", archive.to_str().unwrap(), "--name", "debian"]).expect_code(0);
    wisp.run(&["image", "verify", "debian"]).expect_code(0);
    let private_key = folder.path().join("key.pem");
    wisp.run(&["key", "create", "me", "--file", private_key.to_str().unwrap()]).expect_code(0);
    let launch = ["launch", "debian", "--name", "bookworm", "--memory", "1G", "--key", "me", "--timeout", BOOT];
    wisp.run(&launch).expect_code(0);

    let script = "cat /proc/1/comm; . /etc/os-release; echo $VERSION_CODENAME; hostname; \
        systemctl show --property=ActiveState wisp-agent; cut -d' ' -f1 /root/.ssh/authorized_keys";
    let outcome = wisp.run(&["exec", "bookworm", "--", "/bin/sh", "-c", script]).expect_code(0);
    let text = outcome.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["systemd", "bookworm"]);
    assert_eq!(lines[3..], ["ActiveState=active", "ssh-ed25519"], "{}", outcome.stderr);
    wisp.run(&["terminate", "bookworm"]).expect_code(0);
}
