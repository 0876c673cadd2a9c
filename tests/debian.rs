//! A Debian guest: builds the archive, imports it, and boots the image. The test needs the network and /dev/kvm.
//!
//! Under software KVM, cloud-init takes a quarter of an hour after the agent has started. The test waits for cloud-init
//! only on hardware KVM or with `WISP_TEST_CLOUD_INIT=1`.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::Wisp;
use common::instances::{exec, json};

const BOOT_TIMEOUT: Duration = Duration::from_secs(1500);
const CLOUD_INIT_TIMEOUT: Duration = Duration::from_secs(3600);

const USER_DATA: &str = "#cloud-config
hostname: webby
write_files:
  - path: /root/written
    content: by write_files
runcmd:
  - [sh, -c, 'echo by runcmd >/root/run']
";

#[test]
fn debian_boots_with_agent_service_and_detects_ec2() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("debian.tar");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/debian-image");
    let made = Command::new(script).arg(&archive).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let import = ["image", "import", archive.to_str().unwrap(), "--name", "debian", "--default-user", "admin"];
    wisp.run(&import).expect_code(0);
    wisp.run(&["image", "verify", "debian"]).expect_code(0);
    let private_key = dir.path().join("key.pem");
    let private_key = private_key.to_str().unwrap();
    wisp.run(&["key", "create", "me", "--file", private_key]).expect_code(0);
    let timeout = BOOT_TIMEOUT.as_secs().to_string();
    let user_data = dir.path().join("user-data.yaml");
    std::fs::write(&user_data, USER_DATA).unwrap();
    let user_data = user_data.to_str().unwrap();
    let launch = ["launch", "debian", "--name", "bookworm", "--memory", "1G", "--key", "me", "--user-data", user_data];
    let launch = [&launch[..], &["--timeout", &timeout]].concat();
    let mut launching = wisp.start(&launch);
    assert!(launching.has_ended_within(BOOT_TIMEOUT), "Debian is still booting");
    launching.wait().expect_code(0);

    let script = "cat /proc/1/comm; . /etc/os-release; echo $VERSION_CODENAME; \
        systemctl show --property=ActiveState wisp-agent; cat /sys/class/dmi/id/board_asset_tag; \
        systemctl show --property=LoadState cloud-init";
    let shown = json(&wisp, &["show", "bookworm"])["Reservations"][0]["Instances"][0].clone();
    let id = shown["InstanceId"].as_str().unwrap();
    let text = exec(&wisp, "bookworm", script);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["systemd", "bookworm", "ActiveState=active", id, "LoadState=loaded"]);

    if !vmm::cpu::emulation::is_software_kvm() || std::env::var_os("WISP_TEST_CLOUD_INIT").is_some() {
        assert_cloud_init_applies_user_data(&wisp);
    }
    wisp.run(&["terminate", "bookworm"]).expect_code(0);
}

fn assert_cloud_init_applies_user_data(wisp: &Wisp) {
    let mut waiting = wisp.start(&["exec", "bookworm", "--", "cloud-init", "status", "--long", "--wait"]);
    assert!(waiting.has_ended_within(CLOUD_INIT_TIMEOUT), "cloud-init is still running");
    let status = waiting.wait().expect_code(0);
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains("status: done") && said.contains("DataSourceEc2"), "{said}");
    let script = "cat /root/written /root/run; hostname; cut -d' ' -f1,3 /home/admin/.ssh/authorized_keys; \
        grep -c '\"errors\": \\[\\]' /run/cloud-init/result.json";
    let text = exec(wisp, "bookworm", script);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["by write_filesby runcmd", "webby", "ssh-ed25519 me", "1"]);
}
