//! Templates: the first guest makes one, and other guests are restored from it.

mod common;

use std::collections::BTreeSet;

use common::Wisp;
use common::instances::{SMALL, dir, exec, json, launch};
use common::wait::{Changes, wait_for_path};
use machine::control::{ControlClient, ControlRequest, Message};
use rustix::fs::inotify::WatchFlags;
use serde_json::Value;

fn is_warm(wisp: &Wisp, instance: &str) -> bool {
    json(wisp, &["timeline", instance])["Restored"] == true
}

#[test]
fn warm_launch_creates_independent_instances() {
    let wisp = Wisp::warmable();
    let keys = tempfile::tempdir().unwrap();
    let size = ["--vcpus", "1", "--memory", "192M"];
    wisp.run(&[&["image", "warm", "tiny"], &size[..]].concat()).expect_code(0);
    let shown = json(&wisp, &["image", "show", "tiny"]);
    assert_eq!(shown["Images"][0]["WarmSnapshots"][0]["MemoryMiB"], 192);

    let key = keys.path().join("key.pem");
    wisp.run(&["key", "create", "mine", "--file", key.to_str().unwrap()]).expect_code(0);
    let script = keys.path().join("user-data");
    std::fs::write(&script, "#!/bin/sh\necho ran > /root/user-data\n").unwrap();
    let launched =
        launch(&wisp, &["--count", "3", "--key", "mine", "--user-data", script.to_str().unwrap(), "--overcommit"]);
    let launched = launched.expect_code(0).text();
    let ids: Vec<&str> = launched.lines().collect();
    let mut seen = BTreeSet::new();
    for id in &ids {
        assert!(is_warm(&wisp, id), "{id}");
        // The key and the user data can arrive after the guest is ready.
        let script = "until [ -e /root/user-data ]; do sleep 0.1; done; hostname
            head -c 16 /dev/urandom | od -An -tx1; grep -c mine /root/.ssh/authorized_keys; date +%s";
        let text = exec(&wisp, id, script);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], &id[..10]);
        assert_eq!(lines[2], "1");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(lines[3].parse().unwrap()) <= 3, "{text}");
        assert!(seen.insert(lines[1].to_string()), "two guests drew the same random numbers");
    }

    exec(&wisp, ids[0], "echo mine > /root/file; sync");
    wisp.run(&["reboot", ids[0]]).expect_code(0);
    assert_eq!(exec(&wisp, ids[0], "cat /root/file; hostname"), format!("mine\n{}", &ids[0][..10]));
    assert!(!is_warm(&wisp, ids[0]));
    wisp.run(&[&["terminate"], &ids[..]].concat()).expect_code(0);

    let outcome = wisp.run(&[&["run"], &size[..], &["--", "hostname"]].concat()).expect_code(0);
    assert!(outcome.text().starts_with("i-"), "{}", outcome.text());
    assert_eq!(json(&wisp, &["timeline"])["Restored"], true);

    // A damaged template is replaced by the next launch, which boots.
    let warm = wisp.home().join("warm");
    let dir = std::fs::read_dir(&warm).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    std::fs::write(dir.unwrap().join("state"), "damaged").unwrap();
    launch(&wisp, &["--name", "first"]).expect_code(0);
    assert!(!is_warm(&wisp, "first"));
    launch(&wisp, &["--name", "again", "--overcommit"]).expect_code(0);
    assert!(is_warm(&wisp, "again"));
    wisp.run(&["image", "warm", "tiny", "--remove"]).expect_code(0);
    assert_eq!(json(&wisp, &["image", "show", "tiny"])["Images"][0]["WarmSnapshots"], Value::Array(Vec::new()));
    wisp.run(&["terminate", "first", "again"]).expect_code(0);
    assert_eq!(common::instances::files(&wisp, "warm"), Vec::<String>::new());
}

#[test]
fn first_instance_of_launch_is_the_template_of_the_others() {
    let wisp = Wisp::warmable();
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key.pem");
    wisp.run(&["key", "create", "mine", "--file", key.to_str().unwrap()]).expect_code(0);
    let script = keys.path().join("user-data");
    std::fs::write(&script, "#!/bin/sh\necho ran > /root/user-data\n").unwrap();
    let launched =
        launch(&wisp, &["--count", "3", "--key", "mine", "--user-data", script.to_str().unwrap(), "--overcommit"]);
    let launched = launched.expect_code(0).text();
    let ids: Vec<&str> = launched.lines().collect();
    let warm: Vec<bool> = ids.iter().map(|id| is_warm(&wisp, id)).collect();
    assert_eq!(warm, [false, true, true]);
    let mut seen = BTreeSet::new();
    for id in &ids {
        let script = "until [ -e /root/user-data ]; do sleep 0.1; done; hostname
            head -c 16 /dev/urandom | od -An -tx1; grep -c mine /root/.ssh/authorized_keys; date +%s
            ip -o -4 address show eth0 | wc -l";
        let text = exec(&wisp, id, script);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!((lines[0], lines[2], lines[4]), (&id[..10], "1", "1"), "{text}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(lines[3].parse().unwrap()) <= 3, "{text}");
        assert!(seen.insert(lines[1].to_string()), "two guests drew the same random numbers");
    }
    // The timeline and the image name the same template.
    let shown = json(&wisp, &["image", "show", "tiny"])["Images"][0]["WarmSnapshots"].clone();
    assert_eq!(shown.as_array().map(Vec::len), Some(1));
    assert_eq!(json(&wisp, &["timeline", ids[1]])["Template"], shown[0]["Name"]);
    assert_eq!(json(&wisp, &["timeline", ids[0]])["Template"], Value::Null);

    // A file of the first guest is in no other guest, and outlives its reboot with the same identity.
    exec(&wisp, ids[0], "echo mine > /root/file; sync");
    wisp.run(&["reboot", ids[0]]).expect_code(0);
    assert_eq!(exec(&wisp, ids[0], "cat /root/file; hostname"), format!("mine\n{}", &ids[0][..10]));
    wisp.run(&["exec", ids[1], "--", "test", "-e", "/root/file"]).expect_code(1);
    let mut control = ControlClient::connect(&dir(&wisp, ids[0]).join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Personalize).unwrap();
    let answer = control.receive(Some(common::DEADLINE)).unwrap();
    assert_eq!(answer, Message::Failed { why: "the guest has its identity already".into() });
    wisp.run(&[&["terminate"], &ids[..]].concat()).expect_code(0);

    // A run of the size that `launch` used is restored, too.
    wisp.run(&[&["run"], &SMALL[..], &["--", "true"]].concat()).expect_code(0);
    assert_eq!(json(&wisp, &["timeline"])["Restored"], true);
}

#[test]
fn first_run_is_the_template_of_the_next() {
    let wisp = Wisp::warmable();
    let run = |command: &[&str]| wisp.run(&[&["run"], &SMALL[..], &["--"], command].concat()).expect_code(0).text();
    let first = run(&["sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id; echo lost > /root/file"]);
    assert_eq!(json(&wisp, &["timeline"])["Restored"], false);
    let next = run(&["sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id; ls /root/file 2>&1 >&- | wc -l"]);
    assert_eq!(json(&wisp, &["timeline"])["Restored"], true);
    let (first, next): (Vec<&str>, Vec<&str>) = (first.lines().collect(), next.lines().collect());
    assert!(first[0].starts_with("i-") && next[0].starts_with("i-") && first[0] != next[0], "{first:?} {next:?}");
    // The kernel draws the boot ID when it is first read. The file of the first guest was written after the snapshot.
    assert_ne!(first[1], next[1]);
    assert_eq!(next[2], "1");
    assert!(wisp.runs().is_empty());
}

#[test]
fn waiting_launch_takes_over_from_killed_launch() {
    let wisp = Wisp::warmable();
    // Unpacks the image, and creates the directories.
    wisp.run(&["image", "show", "tiny"]).expect_code(0);
    let changes = Changes::new();
    changes.add(&wisp.home().join("instances"), WatchFlags::CREATE).unwrap();
    let killed = wisp.start(&[&["launch"], &SMALL[..], &["--name", "killed"]].concat());
    while wisp.instances().is_empty() {
        assert!(changes.has_next(), "the launch creates no instance");
    }
    let [instance] = &wisp.instances()[..] else { panic!("expected one instance") };
    wait_for_path(&instance.join("vmm/control.sock"));
    let waiting = wisp.start(&[&["launch"], &SMALL[..], &["--name", "next", "--overcommit"]].concat());
    killed.signal(libc::SIGKILL);
    waiting.wait().expect_code(0);
    assert!(!is_warm(&wisp, "next"));
    assert_eq!(exec(&wisp, "next", "hostname").len(), 10);
    // The machine of the killed launch ended with it. The last command may have removed its directory.
    if instance.exists() {
        common::wait_until_unlocked(instance);
    }
    let shown = wisp.run(&["ls"]).expect_code(0).text();
    assert!(shown.lines().any(|line| line.contains("killed") && line.contains("terminated")), "{shown}");
    let left = common::instances::files(&wisp, "warm");
    assert!(left.iter().all(|name| !name.ends_with(".making")), "{left:?}");
    wisp.run(&["terminate", "next"]).expect_code(0);
}

#[test]
fn templates_are_switched_off_by_environment() {
    let wisp = Wisp::warm();
    let mut command = wisp.command(&[&["image", "warm", "tiny"], &SMALL[..]].concat());
    let output = command.env("WISP_TEMPLATES", "off").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("WISP_TEMPLATES=off"), "{error}");
    let mut command = wisp.command(&[&["launch"], &SMALL[..], &["--no-wait", "--name", "booting"]].concat());
    assert!(command.env("WISP_TEMPLATES", "off").output().unwrap().status.success());
    assert!(!is_warm(&wisp, "booting"));
    wisp.run(&["terminate", "booting"]).expect_code(0);
}
