//! Warm starts: launches from a template.

mod common;

use std::collections::BTreeSet;

use common::Wisp;
use common::instances::{exec, json, launch};
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

    // If the template is damaged, the next launch cold-boots, and a background process creates a new template.
    let warm = wisp.home().join("warm");
    let dir = std::fs::read_dir(&warm).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    std::fs::write(dir.unwrap().join("state"), "damaged").unwrap();
    let id = launch(&wisp, &["--no-wait", "--cold"]).expect_code(0).text();
    assert!(!is_warm(&wisp, id.trim()));
    wisp.run(&["terminate", id.trim()]).expect_code(0);
    launch(&wisp, &["--name", "cold"]).expect_code(0);
    assert!(!is_warm(&wisp, "cold"));
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while json(&wisp, &["image", "show", "tiny"])["Images"][0]["WarmSnapshots"].as_array().unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "no template was created");
        std::thread::yield_now();
    }
    launch(&wisp, &["--name", "again", "--overcommit"]).expect_code(0);
    assert!(is_warm(&wisp, "again"));
    wisp.run(&["image", "warm", "tiny", "--remove"]).expect_code(0);
    assert_eq!(json(&wisp, &["image", "show", "tiny"])["Images"][0]["WarmSnapshots"], Value::Array(Vec::new()));
    wisp.run(&["terminate", "cold", "again"]).expect_code(0);
    assert_eq!(common::instances::files(&wisp, "warm"), Vec::<String>::new());
}
