//! Forks of running instances, and images with memory.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::Wisp;
use common::instances::{exec, files, json, launch};

/// A script that waits until the guest's background process has increased its count.
const COUNTS_ON: &str =
    "c=$(cat /tmp/count); until d=$(cat /tmp/count) && [ -n \"$d\" ] && [ \"$d\" != \"$c\" ]; do :; done";

/// A machine ID, an SSH host key and a random seed. Images may contain them, but each fork must have its own.
const ID: &str = "0123456789abcdef0123456789abcdef";
const HOST_KEY: &str = "/etc/dropbear/dropbear_ed25519_host_key";
const MAKE_IDENTITY: &str = "echo 0123456789abcdef0123456789abcdef > /etc/machine-id; mkdir -p /etc/dropbear \
    /var/lib/systemd; echo key > /etc/dropbear/dropbear_ed25519_host_key; echo seed > /var/lib/systemd/random-seed";
const IDENTITY: &str =
    "cat /etc/machine-id /etc/dropbear/dropbear_ed25519_host_key /var/lib/systemd/random-seed 2>&- || :";

#[test]
fn forks_resume_from_original_and_are_independent() {
    let wisp = Wisp::new();
    let original = launch(&wisp, &["--name", "origin", "--volume", "size=1,name=data"]).expect_code(0).text();
    let original = original.trim();
    let count = "(i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 1; done) > /dev/null 2>&1 &";
    exec(&wisp, original, &format!("{count} echo before > /root/file; echo data > /dev/vdb; {MAKE_IDENTITY}; sync"));
    let boot = exec(&wisp, original, "cat /proc/sys/kernel/random/boot_id");

    let forked = wisp.run(&["fork", "origin", "--count", "2", "--name", "fork", "--overcommit"]).expect_code(0);
    assert!(forked.stderr.contains("was paused for"), "{}", forked.stderr);
    let text = forked.text();
    let forks: Vec<&str> = text.lines().collect();
    assert_eq!(forks.len(), 2);
    let mut drawn = BTreeSet::new();
    for id in [original, forks[0], forks[1]] {
        let script = format!(
            "hostname; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; {COUNTS_ON}
             read d < /dev/vdb; echo $d; cat /root/file; echo {id} > /root/file; echo {id} > /dev/vdb; sync"
        );
        let text = exec(&wisp, id, &script);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], lines[3], lines[4]), (&id[..10], boot.as_str(), "data", "before"), "{text}");
        assert!(drawn.insert(lines[2].to_string()), "two forks drew the same random numbers");
    }
    for id in [original, forks[0], forks[1]] {
        let text = exec(&wisp, id, "cat /root/file; read d < /dev/vdb; echo $d");
        assert_eq!(text, format!("{id}\n{id}"), "the forks share their disks");
    }

    assert_eq!(exec(&wisp, original, IDENTITY), format!("{ID}\nkey\nseed"));
    let ids: BTreeSet<String> = forks.iter().map(|fork| exec(&wisp, fork, IDENTITY)).collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| id.len() == ID.len() && id != ID), "{ids:?}");
    let before = exec(&wisp, forks[0], &format!("echo key > {HOST_KEY}; {IDENTITY}"));

    // Forks do not depend on the original, and behave like any other instance.
    wisp.run(&["terminate", original, forks[1]]).expect_code(0);
    wisp.run(&["stop", forks[0]]).expect_code(0);
    wisp.run(&["start", forks[0]]).expect_code(0);
    assert_eq!(exec(&wisp, forks[0], IDENTITY), before, "the identity changed across a stop and a start");
    assert_eq!(exec(&wisp, forks[0], "cat /root/file; hostname"), format!("{}\n{}", forks[0], &forks[0][..10]));
    wisp.run(&["terminate", forks[0]]).expect_code(0);
    let listed = wisp.run(&["volume", "ls"]).expect_code(0).text();
    assert!(files(&wisp, "volumes").is_empty() || listed.contains("data"), "{listed}");
}

#[test]
fn fork_of_unready_or_missing_instance_is_refused() {
    let wisp = Wisp::new();
    launch(&wisp, &["--name", "early", "--no-wait"]).expect_code(0);
    for (args, code) in [
        (&["fork", "early"][..], "UnsupportedOperation"),
        (&["fork", "early", "--count", "0"], "InvalidParameterValue"),
        (&["fork", "nobody"], "InvalidInstanceID.NotFound"),
    ] {
        let outcome = wisp.run(args).expect_code(1);
        assert!(outcome.stderr.contains(code), "{args:?}: {}", outcome.stderr);
    }
    wisp.run(&["stop", "early", "--force"]).expect_code(0);
    let outcome = wisp.run(&["fork", "early"]).expect_code(1);
    assert!(outcome.stderr.contains("IncorrectInstanceState"), "{}", outcome.stderr);
    wisp.run(&["terminate", "early"]).expect_code(0);
}

#[test]
fn forks_draw_distinct_random_numbers() {
    let wisp = Wisp::warm();
    let original = launch(&wisp, &["--name", "origin"]).expect_code(0).text();
    let put = "cat > /run/draws; chmod +x /run/draws; /run/draws > /run/drawn 2>&1 < /dev/null &";
    wisp.run_with_input(&["exec", "origin", "--", "sh", "-c", put], &common::program("draws")).expect_code(0);
    exec(&wisp, "origin", "until [ -s /run/drawn ]; do :; done");
    let forked = wisp.run(&["fork", "origin", "--count", "2", "--overcommit"]).expect_code(0).text();
    // Numbers drawn before the fork share one time in all copies. A number with two times was drawn by two guests.
    let mut times: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut counts = Vec::new();
    for id in original.lines().chain(forked.lines()) {
        let drawn = exec(&wisp, id, "touch /run/draws.stop; while pgrep draws > /dev/null; do :; done; cat /run/drawn");
        counts.push(drawn.lines().count());
        for (time, number) in drawn.lines().filter_map(|line| line.split_once(' ')) {
            times.entry(number.to_string()).or_default().insert(time.to_string());
        }
    }
    let shared = times.iter().filter(|(_, times)| times.len() > 1).count();
    assert_eq!(shared, 0, "guests drew the same numbers, of {counts:?}");
    assert!(times.len() > counts[0], "the forks drew no numbers after the fork: {counts:?}");
    wisp.run(&[&["terminate", original.trim()], &forked.lines().collect::<Vec<_>>()[..]].concat()).expect_code(0);
}

#[test]
fn image_with_memory_launches_restored_instances() {
    let wisp = Wisp::warm();
    let original = launch(&wisp, &["--name", "origin"]).expect_code(0).text();
    let count = "(i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 1; done) > /dev/null 2>&1 &";
    exec(&wisp, "origin", &format!("{count} echo before > /root/file; {MAKE_IDENTITY}"));
    let boot = exec(&wisp, "origin", "cat /proc/sys/kernel/random/boot_id");
    wisp.run(&["image", "create", "origin", "--name", "warm-origin", "--with-memory"]).expect_code(0);
    exec(&wisp, "origin", &format!("{COUNTS_ON}; echo after > /root/file"));
    let shown = json(&wisp, &["image", "show", "warm-origin"]);
    assert_eq!(shown["Images"][0]["Memory"]["MemoryMiB"], 192, "{shown}");
    wisp.run(&["terminate", original.trim()]).expect_code(0);

    // The default size is the image's.
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/bin/sh\necho ran > /root/user-data\n").unwrap();
    let data = script.path().to_str().unwrap();
    let launched = wisp.run(&["launch", "warm-origin", "--count", "2", "--user-data", data, "--overcommit"]);
    let launched = launched.expect_code(0).text();
    for id in launched.lines() {
        let script = format!(
            "until [ -e /root/user-data ]; do sleep 0.1; done; hostname; cat /proc/sys/kernel/random/boot_id
             {COUNTS_ON}; cat /root/file"
        );
        assert_eq!(exec(&wisp, id, &script), format!("{}\n{boot}\nbefore", &id[..10]));
        let instance = &json(&wisp, &["show", id])["Reservations"][0]["Instances"][0];
        assert_eq!(instance["InstanceType"], "t2.micro", "{instance}");
        wisp.run(&["terminate", id]).expect_code(0);
    }
    let ran = wisp.run(&["run", "warm-origin", "--", "cat", "/proc/sys/kernel/random/boot_id", "/root/file"]);
    assert_eq!(ran.expect_code(0).text(), format!("{boot}\nbefore\n"));
    let cold =
        wisp.run(&["launch", "warm-origin", "--vcpus", "1", "--memory", "128M", "--name", "cold"]).expect_code(0);
    assert!(cold.stderr.contains("instances of other sizes cold-boot"), "{}", cold.stderr);
    assert_eq!(exec(&wisp, "cold", "cat /root/file; [ -e /tmp/count ] || echo booted"), "before\nbooted");
    let identity = exec(&wisp, "cold", IDENTITY);
    assert!(identity.len() == ID.len() && identity != ID, "{identity}");
    wisp.run(&["terminate", "cold"]).expect_code(0);
    wisp.run(&["image", "rm", "warm-origin"]).expect_code(0);
}
