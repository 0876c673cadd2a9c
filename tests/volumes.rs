//! Volumes, snapshots, images, keys and user data, with real guests.

mod common;

use std::process::Command;

use common::Wisp;
use common::instances::{exec, files, json, launch};

fn check_images(wisp: &Wisp) {
    for name in files(wisp, "volumes") {
        let path = wisp.home().join("volumes").join(&name);
        let checked = Command::new("qemu-img").args(["check", "-U"]).arg(&path).output();
        let checked = checked.expect("qemu-img (Debian package qemu-utils) is needed: scripts/test installs it");
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn volume_moves_between_instances_with_its_data() {
    let wisp = Wisp::new();
    let noise = common::noise(3 << 20);
    let dir = tempfile::tempdir().unwrap();
    let sent = dir.path().join("noise");
    std::fs::write(&sent, &noise).unwrap();
    let digest = format!("{}  -", common::sha256(&noise));
    let sum = "head -c 3145728 /dev/vdb | sha256sum";

    wisp.run(&["volume", "create", "16M", "--name", "data"]).expect_code(0);
    let first = wisp.start(&["launch", "--vcpus", "1", "--memory", "192M", "--name", "a", "--volume", "volume=data"]);
    launch(&wisp, &["--name", "b"]).expect_code(0);
    first.wait().expect_code(0);
    wisp.run(&["cp", sent.to_str().unwrap(), "a:/root/noise"]).expect_code(0);
    exec(&wisp, "a", "cat /root/noise > /dev/vdb && sync && rm /root/noise");
    assert_eq!(exec(&wisp, "a", sum), digest);
    let taken = wisp.run(&["volume", "attach", "data", "b"]).expect_code(1);
    assert!(taken.stderr.contains("VolumeInUse"), "{}", taken.stderr);

    // A snapshot is not affected by later writes.
    wisp.run(&["snapshot", "create", "data", "--name", "then"]).expect_code(0);
    exec(&wisp, "a", "dd if=/dev/zero of=/dev/vdb bs=64k count=1 conv=notrunc 2>/dev/null; sync");
    assert_ne!(exec(&wisp, "a", sum), digest);

    // The volume moves between running instances with the last writes, and grows there.
    wisp.run(&["volume", "detach", "data"]).expect_code(0);
    wisp.run(&["volume", "attach", "data", "b"]).expect_code(0);
    assert_eq!(exec(&wisp, "b", "head -c 65536 /dev/vdb | tr -d '\\0' | wc -c"), "0");
    wisp.run(&["volume", "resize", "data", "32M"]).expect_code(0);
    assert_eq!(exec(&wisp, "b", "cat /sys/block/vdb/size"), "65536");
    let smaller = wisp.run(&["volume", "resize", "data", "16M"]).expect_code(1);
    assert!(smaller.stderr.contains("InvalidParameterValue"), "{}", smaller.stderr);

    // The snapshot outlives the volume, and is the source of a new one.
    wisp.run(&["volume", "detach", "data"]).expect_code(0);
    wisp.run(&["volume", "rm", "data"]).expect_code(0);
    wisp.run(&["volume", "create", "--snapshot", "then", "--name", "copy"]).expect_code(0);
    wisp.run(&["volume", "attach", "copy", "a"]).expect_code(0);
    assert_eq!(exec(&wisp, "a", sum), digest);
    check_images(&wisp);

    // Volumes that are attached without delete-on-termination are kept.
    wisp.run(&["terminate", "a", "b"]).expect_code(0);
    let volumes = json(&wisp, &["volume", "ls"]);
    let left: Vec<&str> =
        volumes["Volumes"].as_array().unwrap().iter().map(|volume| volume["State"].as_str().unwrap()).collect();
    assert_eq!(left, ["available"]);
    wisp.run(&["volume", "rm", "copy"]).expect_code(0);
    wisp.run(&["snapshot", "rm", "then"]).expect_code(0);
    assert_eq!(files(&wisp, "volumes"), Vec::<String>::new());
}

#[test]
fn image_of_instance_launches_others() {
    let wisp = Wisp::warm();
    let dir = tempfile::tempdir().unwrap();
    let (script, key) = (dir.path().join("user-data"), dir.path().join("me.pem"));
    std::fs::write(&script, "#!/bin/sh\necho once >> /root/ran\necho said by user data\n").unwrap();
    wisp.run(&["key", "create", "me", "--file", key.to_str().unwrap()]).expect_code(0);
    wisp.run(&["key", "create", "me", "--file", key.to_str().unwrap()]).expect_code(1);
    launch(&wisp, &["--name", "first", "--key", "me", "--user-data", script.to_str().unwrap()]).expect_code(0);
    let done = "until grep -q finished /var/lib/wisp/user-data.state 2>/dev/null; do sleep 0.1; done; cat /root/ran";
    assert_eq!(exec(&wisp, "first", done), "once");
    assert!(exec(&wisp, "first", "cat /root/.ssh/authorized_keys").starts_with("ssh-ed25519 "));
    let shown = wisp.run(&["show", "first", "--all"]).expect_code(0).text();
    assert!(shown.contains("finished, exit code 0"), "{shown}");
    let console = wisp.run(&["console", "first"]).expect_code(0).text();
    assert!(console.contains("said by user data"), "{console}");

    // User data runs once per instance: not at the next boot, but again in an instance of the image.
    wisp.run(&["image", "create", "first", "--name", "golden"]).expect_code(0);
    let duplicate = wisp.run(&["image", "create", "first", "--name", "golden"]).expect_code(1);
    assert!(duplicate.stderr.contains("InvalidAMIName.Duplicate"), "{}", duplicate.stderr);
    wisp.run(&["image", "verify", "golden"]).expect_code(0);
    wisp.run(&["reboot", "first"]).expect_code(0);
    assert_eq!(exec(&wisp, "first", "cat /root/ran"), "once");
    wisp.run(&["terminate", "first"]).expect_code(0);
    launch(&wisp, &["golden", "--name", "second", "--user-data", script.to_str().unwrap()]).expect_code(0);
    assert_eq!(exec(&wisp, "second", &done.replace("grep -q", "grep -q $(hostname).*")), "once\nonce");

    // A deregistered image is kept for its instances.
    wisp.run(&["image", "rm", "golden"]).expect_code(0);
    wisp.run(&["launch", "golden"]).expect_code(1);
    wisp.run(&["stop", "second"]).expect_code(0);
    wisp.run(&["start", "second"]).expect_code(0);
    assert_eq!(exec(&wisp, "second", "cat /root/ran"), "once\nonce");
    check_images(&wisp);
}

#[test]
fn instance_store_is_empty_after_each_start() {
    let wisp = Wisp::new();
    launch(&wisp, &["--name", "store", "--type", "i3.large"]).expect_code(0);
    let size = "cat /sys/block/vdb/size; head -c 1048576 /dev/vdb | tr -d '\\0' | wc -c";
    assert_eq!(exec(&wisp, "store", size), "927734375\n0", "475 GB of zeroes");
    exec(&wisp, "store", "echo something > /dev/vdb; sync");
    wisp.run(&["reboot", "store"]).expect_code(0);
    assert_eq!(exec(&wisp, "store", "head -c 9 /dev/vdb"), "something", "a reboot keeps the data");
    wisp.run(&["stop", "store"]).expect_code(0);
    assert!(!wisp.instances()[0].join("ephemeral0").exists(), "a stop deletes the data");
    wisp.run(&["start", "store"]).expect_code(0);
    assert_eq!(exec(&wisp, "store", size), "927734375\n0");
}

#[test]
fn invalid_volume_requests_are_refused() {
    let wisp = Wisp::without_kvm();
    for (args, code) in [
        (&["volume", "create", "20000"][..], "InvalidParameterValue"),
        (&["volume", "create", "1", "--type", "io1", "--iops", "1000000"], "InvalidParameter"),
        (&["volume", "rm", "vol-0123456789abcdef0"], "InvalidVolume.NotFound"),
        (&["volume", "attach", "nothing", "nobody"], "InvalidVolume.NotFound"),
        (&["snapshot", "rm", "snap-0123456789abcdef0"], "InvalidSnapshot.NotFound"),
        (&["key", "rm", "nobody"], "InvalidKeyPair.NotFound"),
        (&["image", "rm", "tiny"], "OperationNotPermitted"),
        (&["image", "show", "ami-0123456789abcdef0"], "InvalidAMIID.NotFound"),
    ] {
        let outcome = wisp.run(args).expect_code(1);
        assert!(outcome.stderr.contains(code), "{args:?}: {}", outcome.stderr);
    }
}
