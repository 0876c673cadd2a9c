//! The life cycle of instances as in EC2, with real guests.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use common::instances::{exec, files, json, launch};
use common::{Wisp, vmm_pid, wait_until_gone, wait_until_unlocked};
use ec2::state::InstanceState;
use machine::control::{ControlClient, ControlRequest};
use serde_json::Value;
use store::{InstanceRecord, Store, StoreError};
use test_support::Steps;

fn instances(wisp: &Wisp) -> Vec<Value> {
    let listing = json(wisp, &["ls"]);
    let groups = listing["Reservations"].as_array().unwrap();
    groups.iter().flat_map(|group| group["Instances"].as_array().unwrap().clone()).collect()
}

fn state(wisp: &Wisp, instance: &str) -> String {
    let shown = json(wisp, &["show", instance]);
    shown["Reservations"][0]["Instances"][0]["State"]["Name"].as_str().unwrap().to_string()
}

fn reason(wisp: &Wisp, instance: &str) -> String {
    let shown = json(wisp, &["show", instance]);
    shown["Reservations"][0]["Instances"][0]["StateReason"]["Code"].as_str().unwrap().to_string()
}

fn refused(outcome: common::Outcome, text: &str) {
    let outcome = outcome.expect_code(1);
    assert!(outcome.stderr.contains(text), "{}", outcome.stderr);
}

fn kill_vmm(wisp: &Wisp, id: &str) {
    let dir = wisp.home().join("instances").join(id);
    let pid = vmm_pid(&dir);
    // SAFETY: the VMM has just answered; it is a process of this test.
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGKILL) }, 0);
    wait_until_gone(pid);
    wait_until_unlocked(&dir);
}

/// Copies a sparse file of 1 GiB to `web` and back. Sent as data, its holes would not fit on the guest's disk.
fn copy_sparse_file(wisp: &Wisp, dir: &Path) {
    const LENGTH: u64 = 1 << 30;
    let (sent, back) = (dir.join("sparse"), dir.join("sparse-back"));
    let file = std::fs::File::create(&sent).unwrap();
    file.write_all_at(&common::noise(10_000), 300 << 20).unwrap();
    file.set_len(LENGTH).unwrap();
    wisp.run(&["cp", sent.to_str().unwrap(), "web:/root/sparse"]).expect_code(0);
    let in_guest = exec(wisp, "web", "stat -c '%s %b' /root/sparse");
    let (length, blocks) = in_guest.split_once(' ').unwrap();
    assert_eq!(length, LENGTH.to_string());
    assert!(blocks.parse::<u64>().unwrap() < 2048, "{blocks} blocks in the guest");
    wisp.run(&["cp", "web:/root/sparse", back.to_str().unwrap()]).expect_code(0);
    let metadata = back.metadata().unwrap();
    assert!(metadata.len() == LENGTH && metadata.blocks() < 2048, "{metadata:?}");
    let mut noise = vec![0; 10_000];
    std::fs::File::open(&back).unwrap().read_exact_at(&mut noise, 300 << 20).unwrap();
    assert_eq!(noise, common::noise(10_000));
    exec(wisp, "web", "rm /root/sparse");

    exec(wisp, "web", "mkfifo /root/pipe");
    let refused = wisp.run(&["cp", dir.join("sent").to_str().unwrap(), "web:/root/pipe"]).expect_code(1);
    assert!(refused.stderr.contains("/root/pipe is a pipe"), "{}", refused.stderr);
    exec(wisp, "web", "test -p /root/pipe && rm /root/pipe");
}

#[test]
fn instance_life_cycle_matches_ec2() {
    let wisp = Wisp::in_long_home();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("user-data");
    // A byte order mark and CRLF, as Windows editors write them. The background process keeps the output open.
    std::fs::write(&script, "\u{feff}#!/bin/sh\r\necho ran > /root/user-data\r\n(while :; do sleep 1000; done) &\r\n")
        .unwrap();
    let data = ["--user-data", script.to_str().unwrap()];
    let token = [&["--name", "web", "--client-token", "one", "--tag", "team=red"], &data[..]].concat();
    let id = launch(&wisp, &token).expect_code(0).text().trim().to_string();

    let mut steps = Steps::new();
    steps.run("a client token makes the launch idempotent", || {
        assert_eq!(launch(&wisp, &token).expect_code(0).text().trim(), id);
        let other = launch(&wisp, &["--name", "db", "--client-token", "one"]).expect_code(1);
        assert!(other.stderr.contains("IdempotentParameterMismatch"), "{}", other.stderr);
    });

    steps.run("describe shows the instance", || {
        let all = instances(&wisp);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0]["InstanceId"], id.as_str());
        assert_eq!(all[0]["State"]["Code"], 16);
        assert_eq!(all[0]["Tags"][1]["Value"], "red");
    });

    // The host sends the seed only to privileged source ports, which the guest's kernel reserves for root.
    steps.run("only root's ports get the seed", || {
        let put = "cat > /run/seed && chmod 755 /run/seed";
        wisp.run_with_input(&["exec", "web", "--", "sh", "-c", put], &common::program("seed")).expect_code(0);
        for (user, port, expected) in [
            ("root", "1000", "read: a seed"),
            ("root", "", "connect: ConnectionReset"),
            ("nobody", "1000", "bind: PermissionDenied"),
            ("nobody", "4000", "connect: ConnectionReset"),
            ("nobody", "", "connect: ConnectionReset"),
        ] {
            let command =
                [&["exec", "--user", user, "web", "--", "/run/seed"][..], &[port][..usize::from(!port.is_empty())]]
                    .concat();
            assert_eq!(wisp.run(&command).expect_code(0).text().trim(), expected, "{user} {port}");
        }
    });

    steps.require("a file is copied both ways", || {
        let (sent, back) = (dir.path().join("sent"), dir.path().join("back"));
        std::fs::write(&sent, common::noise(100_000)).unwrap();
        wisp.run(&["cp", sent.to_str().unwrap(), "web:/root/data"]).expect_code(0);
        wisp.run(&["cp", "web:/root/data", back.to_str().unwrap()]).expect_code(0);
        assert_eq!(std::fs::read(&back).unwrap(), common::noise(100_000));
    });
    steps.run("a sparse file is copied both ways", || copy_sparse_file(&wisp, dir.path()));
    steps.run("user data runs once", || {
        let ran = "until grep -q finished /var/lib/wisp/user-data.state; do sleep 0.1; done; cat /root/user-data";
        assert_eq!(exec(&wisp, "web", ran), "ran");
        let shown = wisp.run(&["show", "web", "--all"]).expect_code(0).text();
        assert!(shown.contains("finished, exit code 0"), "{shown}");
    });
    steps.run("a running instance keeps its size", || {
        let too_early = wisp.run(&["modify", "web", "--vcpus", "2", "--memory", "192M"]).expect_code(1);
        assert!(too_early.stderr.contains("IncorrectInstanceState"), "{}", too_early.stderr);
    });

    // A stopped instance keeps its disk and accepts another size.
    steps.require("the instance stops", || wisp.run(&["stop", "web"]).expect_code(0));
    steps.run("a stopped instance has a reason and runs no commands", || {
        assert_eq!(state(&wisp, "web"), "stopped");
        assert_eq!(reason(&wisp, "web"), "Client.UserInitiatedShutdown");
        let unreachable = wisp.run(&["exec", "web", "--", "true"]).expect_code(125);
        assert!(unreachable.stderr.contains("IncorrectInstanceState"), "{}", unreachable.stderr);
    });
    steps.require("a stopped instance accepts another size", || {
        wisp.run(&["modify", "web", "--vcpus", "2", "--memory", "256M"]).expect_code(0);
        wisp.run(&["start", "web"]).expect_code(0);
    });
    steps.run("stop keeps the root volume", || {
        let seen = exec(&wisp, "web", "sha256sum /root/data | cut -c1-64; nproc");
        assert_eq!(seen, format!("{}\n2", common::sha256(&common::noise(100_000))));
    });

    steps.run("reboot keeps the root volume and the ID", || {
        let boot = exec(&wisp, "web", "cat /proc/sys/kernel/random/boot_id");
        wisp.run(&["reboot", "web"]).expect_code(0);
        assert_ne!(exec(&wisp, "web", "cat /proc/sys/kernel/random/boot_id"), boot);
        assert_eq!(exec(&wisp, "web", "wc -c < /root/data"), "100000");
        assert_eq!(instances(&wisp)[0]["InstanceId"], id.as_str());
    });

    // The keys of exposed tags must be valid in the metadata service's paths.
    steps.run("exposed tags have keys that are valid in paths", || {
        refused(wisp.run(&["launch", "--metadata-options", "tags=enabled", "--tag", "a b=1"]), "not a valid tag key");
        wisp.run(&["modify", "web", "--metadata-options", "tags=enabled"]).expect_code(0);
        wisp.run(&["tag", "web", "a.b=1"]).expect_code(0);
        refused(wisp.run(&["tag", "web", "a/b=1"]), "InvalidParameterValue");
        wisp.run(&["modify", "web", "--metadata-options", "tags=disabled"]).expect_code(0);
        wisp.run(&["tag", "web", "a/b=1"]).expect_code(0);
        refused(wisp.run(&["modify", "web", "--metadata-options", "tags=enabled"]), "'a/b' is not a valid tag key");
        wisp.run(&["tag", "web", "--remove", "a/b"]).expect_code(0);
        wisp.run(&["modify", "web", "--metadata-options", "tags=enabled"]).expect_code(0);
    });

    steps.run("termination protection prevents termination", || {
        wisp.run(&["modify", "web", "--termination-protection"]).expect_code(0);
        let protected = wisp.run(&["terminate", "web"]).expect_code(1);
        assert!(protected.stderr.contains("OperationNotPermitted"), "{}", protected.stderr);
        wisp.run(&["modify", "web", "--no-termination-protection"]).expect_code(0);
    });
    steps.require("the instance is terminated", || wisp.run(&["terminate", "web"]).expect_code(0));
    steps.run("terminate removes directories and volumes", || {
        assert_eq!(state(&wisp, &id), "terminated");
        assert!(wisp.instances().is_empty());
        assert_eq!(files(&wisp, "volumes"), Vec::<String>::new());
    });

    steps.run("a client token is not reused", || {
        let again = launch(&wisp, &token).expect_code(1);
        assert!(again.stderr.contains("IdempotentInstanceTerminated"), "{}", again.stderr);
        assert_eq!(instances(&wisp).len(), 1);
    });
}

#[test]
fn unexpected_ends_have_distinct_state_reasons() {
    let wisp = Wisp::warm();
    let launched = launch(&wisp, &["--count", "3", "--shutdown-behavior", "terminate"]).expect_code(0).text();
    let ids: Vec<&str> = launched.lines().collect();
    assert_eq!(ids.len(), 3);
    let names: Vec<String> = ids.iter().map(|id| exec(&wisp, id, "hostname")).collect();
    assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");

    // The guest's synced data survives a kill of the VMM.
    exec(&wisp, ids[0], "echo kept > /root/file; sync");
    kill_vmm(&wisp, ids[0]);
    let first = wisp.run(&["ls"]).expect_code(0);
    assert!(first.stderr.contains(ids[0]) && first.stderr.contains("was killed"), "{}", first.stderr);
    let second = wisp.run(&["ls"]).expect_code(0);
    assert!(!second.stderr.contains("was killed"), "the kill was reported twice: {}", second.stderr);
    assert_eq!(reason(&wisp, ids[0]), "Server.InternalError");
    wisp.run(&["start", ids[0]]).expect_code(0);
    assert_eq!(exec(&wisp, ids[0], "cat /root/file"), "kept");

    // A reboot ends early if the VMM is killed while its guest shuts down.
    let stay = "(trap 'echo going-down > /dev/console' TERM; while :; do sleep 1; done) > /dev/null 2>&1 &";
    exec(&wisp, ids[0], stay);
    let mut console = wisp.start(&["console", ids[0], "--follow"]);
    let rebooting = wisp.start(&["reboot", ids[0]]);
    console.wait_for("going-down");
    kill_vmm(&wisp, ids[0]);
    let refused = rebooting.wait().expect_code(1).stderr;
    let is_said = |text: &str| refused.contains(text);
    // The reboot may have completed just before the kill.
    assert!(is_said("ended before it was rebooted") || is_said("before its agent was ready"), "{refused}");
    console.wait().expect_code(0);

    // The VMM's lock outlives the VMM slightly. Here, `start` runs before the lock is released.
    let dir = wisp.home().join("instances").join(ids[0]);
    wisp.run(&["start", ids[0], "--no-wait"]).expect_code(0);
    kill_vmm(&wisp, ids[0]);
    let lock = node::home::lock_file(&dir.join("lock")).unwrap();
    let mut starting = wisp.start(&["start", ids[0], "--no-wait"]);
    assert!(!starting.has_ended_within(Duration::from_secs(1)), "start did not wait for the lock");
    drop(lock);
    assert!(starting.wait().expect_code(0).text().contains("stopped → pending"));
    assert_eq!(state(&wisp, ids[0]), "running");

    wisp.run(&["exec", ids[1], "--", "sh", "-c", "echo c > /proc/sysrq-trigger"]);
    wait_until_state(&wisp, ids[1], "stopped");
    assert_eq!(reason(&wisp, ids[1]), "Server.InternalError");
    let shown = wisp.run(&["show", ids[1]]).expect_code(0).text();
    assert!(shown.contains("stopped (failed)") && shown.contains("sysrq triggered crash"), "{shown}");
    let console = wisp.run(&["console", ids[1]]).expect_code(0).text();
    assert!(console.contains("Kernel panic"), "{console}");

    wisp.run(&["exec", ids[2], "--", "poweroff"]);
    wait_until_state(&wisp, ids[2], "terminated");
    assert_eq!(reason(&wisp, ids[2]), "Client.InstanceInitiatedShutdown");
}

#[test]
fn killed_launch_is_all_or_nothing() {
    let wisp = Wisp::new();
    let launched = launch(&wisp, &["--count", "2", "--no-wait"]).expect_code(0).text();
    let ids: Vec<&str> = launched.lines().collect();
    // The state after a launch was killed when all VMMs had started.
    let unsettle = || {
        Store::open(wisp.home()).unwrap().write::<_, StoreError>(|tx| {
            let records: Vec<InstanceRecord> = tx.list()?;
            records.into_iter().try_for_each(|mut record| {
                record.status.state = InstanceState::Pending;
                record.status.starts = 0;
                tx.put(&mut record)
            })
        })
    };
    unsettle().unwrap();
    assert!(ids.iter().all(|id| state(&wisp, id) == "running"));
    // The state after a launch was killed before the last VMM had started.
    unsettle().unwrap();
    kill_vmm(&wisp, ids[1]);
    let stderr = wisp.run(&["ls"]).expect_code(0).stderr;
    assert!(ids.iter().all(|id| stderr.contains(id)), "{stderr}");
    assert!(ids.iter().all(|id| state(&wisp, id) == "terminated"), "{stderr}");
    assert!(wisp.instances().is_empty());
}

#[track_caller]
fn wait_until_state(wisp: &Wisp, id: &str, expected: &str) {
    let dir = wisp.home().join("instances").join(id);
    if let Ok(mut control) = ControlClient::connect(&dir.join("vmm/control.sock")) {
        let _ = control.send(&ControlRequest::Subscribe);
        while control.receive(Some(common::DEADLINE)).is_ok() {}
    }
    // The process has ended when its lock is free.
    if let Ok(lock) = std::fs::File::open(dir.join("lock")) {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    }
    assert_eq!(state(wisp, id), expected);
}

#[test]
fn invalid_requests_fail_with_ec2_error_codes() {
    let wisp = Wisp::new();
    for (args, code) in [
        (&["show", "i-0123456789abcdef0"][..], "InvalidInstanceID.NotFound"),
        (&["stop", "nobody"], "InvalidInstanceID.NotFound"),
        (&["launch", "ami-0123456789abcdef0"], "InvalidAMIID.NotFound"),
        (&["stop", "i-123"], "InvalidInstanceID.Malformed"),
        (&["stop", "vol-0123456789abcdef0"], "InvalidInstanceID.Malformed"),
        (&["launch", "ami-123"], "InvalidAMIID.Malformed"),
        (&["volume", "rm", "vol-123"], "InvalidVolumeID.Malformed"),
        (&["volume", "rm", "vol-0123456789abcdef0"], "InvalidVolume.NotFound"),
        (&["snapshot", "rm", "snap-123"], "InvalidSnapshotID.Malformed"),
        (&["sg", "show", "sg-123"], "InvalidGroupId.Malformed"),
        (&["sg", "show", "sg-0123456789abcdef0"], "InvalidGroup.NotFound"),
        (&["sg", "revoke", "default", "--rule", "sgr-0123456789abcdef0"], "InvalidSecurityGroupRuleId.NotFound"),
        (&["vpc", "rm", "vpc-123"], "InvalidVpcID.Malformed"),
        (&["subnet", "rm", "subnet-123"], "InvalidSubnetID.Malformed"),
        (&["address", "release", "eipalloc-123"], "InvalidAllocationID.Malformed"),
        (&["tag", "subnet-123", "a=b"], "InvalidSubnetID.Malformed"),
        (&["launch", "--type", "t9.huge"], "InvalidParameterValue"),
        (&["launch", "--count", "0"], "InvalidParameterValue"),
        (&["launch", "--key", "none"], "InvalidKeyPair.NotFound"),
        (&["launch", "--dry-run"], "DryRunOperation"),
        (&["launch", "--memory", "8T", "--vcpus", "1"], "InsufficientInstanceCapacity"),
    ] {
        let outcome = wisp.run(args).expect_code(1);
        assert!(outcome.stderr.contains(code), "{args:?}: {}", outcome.stderr);
    }
    assert_eq!(instances(&wisp), Vec::<Value>::new());
}

/// Returns the data directory: each table's rows, and the contents of all files except the store's own.
fn contents(wisp: &Wisp) -> Vec<(String, Vec<u8>)> {
    let store = rusqlite::Connection::open(wisp.home().join(store::FILE)).unwrap();
    let column = |text: &str| -> Vec<String> {
        let mut statement = store.prepare(text).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let tables =
        column("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%record TEXT%' ORDER BY name");
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for table in tables {
        let rows = column(&format!("SELECT record FROM {table} ORDER BY record"));
        all.push((table, rows.join("\n").into_bytes()));
    }
    let mut dirs = vec![wisp.home().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(wisp.home()).unwrap().to_str().unwrap().to_string();
            match path.is_dir() {
                true => all.push((name, Vec::new())),
                false if name.starts_with(store::FILE) => {}
                false => all.push((name, std::fs::read(&path).unwrap())),
            }
            dirs.extend(path.is_dir().then_some(path));
        }
    }
    all.sort();
    all
}

#[test]
fn dry_run_changes_nothing_in_the_data_directory() {
    let wisp = Wisp::new();
    wisp.run(&["ls"]).expect_code(0);
    let before = contents(&wisp);
    let dry_run = |args: &[&str], code: &str| {
        refused(wisp.run(&[&["launch", "--dry-run"], args].concat()), code);
        assert!(contents(&wisp) == before, "{args:?} changed the data directory");
    };
    dry_run(&[], "DryRunOperation");
    dry_run(&["tiny", "--count", "2", "--security-group", "default", "--client-token", "one"], "DryRunOperation");
    dry_run(&["--volume", "1", "--private-ip", "172.31.0.9", "--tag", "a=b"], "DryRunOperation");
    dry_run(&["--key", "none"], "InvalidKeyPair.NotFound");
    dry_run(&["--security-group", "none"], "InvalidGroup.NotFound");
    dry_run(&["--subnet", "none"], "InvalidSubnetID.NotFound");
    dry_run(&["none"], "InvalidAMIID.NotFound");
}

#[test]
fn suggested_command_quotes_names() {
    let wisp = Wisp::without_kvm();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my key.pem");
    let made = wisp.run(&["key", "create", "my key", "--file", file.to_str().unwrap()]).expect_code(0);
    assert!(made.stderr.contains("Next: wisp launch --key 'my key'\n"), "{}", made.stderr);
    let made = wisp.run(&["volume", "create", "1", "--name", "it's; reboot"]).expect_code(0);
    assert!(made.stderr.contains(r"Next: wisp volume attach 'it'\''s; reboot' INSTANCE"), "{}", made.stderr);
}

#[test]
fn concurrent_commands_on_one_instance_succeed() {
    let wisp = Wisp::warm();
    let id = launch(&wisp, &["--name", "busy"]).expect_code(0).text().trim().to_string();
    let stops: Vec<_> = (0..3).map(|_| wisp.start(&["stop", "busy"])).collect();
    for stop in stops {
        stop.wait().expect_code(0);
    }
    assert_eq!(state(&wisp, "busy"), "stopped");
    let ends: Vec<_> = (0..2).map(|_| wisp.start(&["terminate", &id])).collect();
    for end in ends {
        end.wait().expect_code(0);
    }
    assert_eq!(state(&wisp, &id), "terminated");
}
