//! A Debian guest, from the mirror to a command in it: the archive is made, an image is made of it, systemd starts the
//! agent, and cloud-init makes an instance of it by what the metadata service says. It needs the network, /dev/kvm and,
//! where guest kernels are emulated, some minutes.

mod common;

use std::path::Path;
use std::process::Command;

use common::Wisp;
use common::instances::{exec, json};
use serde_json::Value;

/// How long the guest may take until its agent answers, in seconds.
const BOOT: &str = "1500";

/// A script and a configuration in one, as cloud-init's documentation has it ("User data formats").
const USER_DATA: &str = "\
Content-Type: multipart/mixed; boundary=\"part\"
MIME-Version: 1.0

--part
Content-Type: text/x-shellscript

#!/bin/sh
echo ran >> /root/script
--part
Content-Type: text/cloud-config

#cloud-config
write_files:
  - path: /root/configured
    content: by cloud-config
--part--
";

#[test]
fn debian_boots_under_systemd_and_cloud_init_makes_an_instance_of_it() {
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
    wisp.run(&["sg", "create", "shell"]).expect_code(0);
    wisp.run(&["sg", "authorize", "shell", "--port", "22"]).expect_code(0);
    let user_data = folder.path().join("user-data");
    std::fs::write(&user_data, USER_DATA).unwrap();
    let launch = ["launch", "debian", "--name", "bookworm", "--memory", "1G", "--key", "me", "--timeout", BOOT];
    let more = ["--security-group", "shell", "--user-data", user_data.to_str().unwrap()];
    wisp.run(&[&launch[..], &more].concat()).expect_code(0);

    let script = "cat /proc/1/comm; . /etc/os-release; echo $VERSION_CODENAME; \
        systemctl show --property=ActiveState wisp-agent; cat /sys/class/dmi/id/board_asset_tag";
    let shown = json(&wisp, &["show", "bookworm"])["Reservations"][0]["Instances"][0].clone();
    let id = shown["InstanceId"].as_str().unwrap();
    let text = exec(&wisp, "bookworm", script);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["systemd", "bookworm", "ActiveState=active", id]);

    // What cloud-init did, when it has done it all.
    let script = "until [ -e /run/cloud-init/result.json ]; do sleep 1; done; cat /run/cloud-init/result.json";
    let result: Value = serde_json::from_str(&exec(&wisp, "bookworm", script)).unwrap();
    let log = || exec(&wisp, "bookworm", "grep -E 'WARNING|ERROR|Traceback' /var/log/cloud-init.log || true");
    assert_eq!(result["v1"]["datasource"], "DataSourceEc2Local", "{}", log());
    assert_eq!(result["v1"]["errors"], Value::Array(Vec::new()), "{}", log());
    assert_eq!(log(), "");
    let name = shown["PrivateDnsName"].as_str().unwrap();
    let name = name.split('.').next().unwrap();
    let script = "hostname; cat /root/script /root/configured; echo; ls /var/lib/cloud/instances; \
        ls /var/lib/wisp 2>/dev/null";
    let text = exec(&wisp, "bookworm", script);
    assert_eq!(text.lines().collect::<Vec<_>>(), [name, "ran", "by cloud-config", id]);

    // By the key that cloud-init put there, to the server whose host keys it made.
    let script = "id -un; sudo wc -l < /home/admin/.ssh/authorized_keys";
    let outcome = wisp.run(&["ssh", "bookworm", "-i", private_key, "--", script]).expect_code(0);
    assert_eq!(outcome.text(), "admin\n1\n", "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("agent"), "{}", outcome.stderr);
    wisp.run(&["terminate", "bookworm"]).expect_code(0);
}
