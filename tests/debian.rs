//! A Debian guest, from the mirror to a command in it: the archive is made, an image is made of it, systemd starts the
//! agent. It needs the network, /dev/kvm and, where guest kernels are emulated, some minutes; cloud-init, which goes on
//! behind the agent there for more of them, is not waited for.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::Wisp;
use common::instances::{exec, json};

/// How long the guest may take until its agent answers.
const BOOT: Duration = Duration::from_secs(1500);

#[test]
fn debian_boots_under_systemd_with_the_agent_as_a_service_and_knows_that_it_is_on_ec2() {
    let wisp = Wisp::new();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("debian.tar");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/debian-image");
    let made = Command::new(script).arg(&archive).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let import = ["image", "import", archive.to_str().unwrap(), "--name", "debian", "--default-user", "admin"];
    wisp.run(&import).expect_code(0);
    wisp.run(&["image", "verify", "debian"]).expect_code(0);
    let private_key = folder.path().join("key.pem");
    let private_key = private_key.to_str().unwrap();
    wisp.run(&["key", "create", "me", "--file", private_key]).expect_code(0);
    let timeout = BOOT.as_secs().to_string();
    let launch = ["launch", "debian", "--name", "bookworm", "--memory", "1G", "--key", "me", "--timeout", &timeout];
    let mut launching = wisp.start(&launch);
    assert!(launching.has_ended_within(BOOT), "Debian is still booting");
    launching.wait().expect_code(0);

    let script = "cat /proc/1/comm; . /etc/os-release; echo $VERSION_CODENAME; \
        systemctl show --property=ActiveState wisp-agent; cat /sys/class/dmi/id/board_asset_tag; \
        systemctl show --property=LoadState cloud-init";
    let shown = json(&wisp, &["show", "bookworm"])["Reservations"][0]["Instances"][0].clone();
    let id = shown["InstanceId"].as_str().unwrap();
    let text = exec(&wisp, "bookworm", script);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["systemd", "bookworm", "ActiveState=active", id, "LoadState=loaded"]);

    wisp.run(&["terminate", "bookworm"]).expect_code(0);
}
