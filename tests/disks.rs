//! Disks: the host sees the guest's writes, read-only disks stay unchanged, and damaged records affect no others.

mod common;

use std::fs;

use common::instances::json;
use common::{Wisp, noise, sha256};
use serde_json::{Value, json};
use store::{self, InstanceRecord, Store, StoreError};

const MIB: usize = 1 << 20;

#[test]
fn flushed_guest_writes_reach_disk_file() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let (writable, read_only) = (dir.path().join("writable"), dir.path().join("read-only"));
    let original = noise(2 * MIB);
    fs::write(&writable, vec![0; 2 * MIB]).unwrap();
    fs::write(&read_only, &original).unwrap();
    let script = "
        cat /sys/block/vdb/serial; echo; cat /sys/block/vdc/ro
        dd if=/dev/vdc of=/dev/vdb bs=64k conv=fsync 2>/dev/null
        sha256sum /dev/vdb | cut -d' ' -f1
        dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync 2>/dev/null && echo 'a read-only disk was written'
        blkdiscard -o 1048576 -l 65536 /dev/vdb || echo 'no discard'
        dd if=/dev/vdb bs=4k count=1 skip=512 2>/dev/null | wc -c
        exit 0";
    let read_only_arg = format!("{},ro", read_only.display());
    let args = ["run", "--disk", writable.to_str().unwrap(), "--disk", &read_only_arg, "--", "sh", "-c", script];
    let outcome = wisp.run(&args).expect_code(0);
    let lines: Vec<String> = outcome.text().lines().map(str::to_string).collect();
    assert_eq!(lines, ["disk0", "1", &sha256(&original), "0"], "{}", outcome.stderr);
    let written = fs::read(&writable).unwrap();
    assert!(written[..MIB] == original[..MIB], "the start of the disk differs");
    assert!(written[MIB + 65_536..] == original[MIB + 65_536..], "the end of the disk differs");
    assert!(fs::read(&read_only).unwrap() == original, "the read-only disk's file was changed");
}

#[test]
fn root_image_is_never_written() {
    let wisp = Wisp::new();
    let root = wisp.bundle().join("root.ext4");
    let before = sha256(&fs::read(&root).unwrap());
    let script = "echo precious > /root/file && sync && cat /root/file";
    let outcome = wisp.run(&["run", "--", "sh", "-c", script]).expect_code(0);
    assert_eq!(outcome.text(), "precious\n");
    assert_eq!(sha256(&fs::read(&root).unwrap()), before);
}

fn stopped_instance(id: &str) -> InstanceRecord {
    let record = json!({
        "meta": {"id": id, "created": 1, "generation": 0},
        "spec": {
            "image_id": "ami-0123456789abcdef0", "key_name": null, "user_data": null, "shutdown_behavior": "stop",
            "termination_protection": false,
            "size": {"instance_type": "t3.nano", "vcpus": 1, "threads_per_core": 1, "memory_mib": 192},
        },
        "status": {
            "launch": {"reservation_id": "r-0123456789abcdef0", "launch_index": 0, "image_name": "none"},
            "state": "stopped", "state_reason": null, "launch_time": 1, "starts": 1, "terminated": null,
            "block_devices": [],
        },
    });
    serde_json::from_value(record).unwrap()
}

fn change_store(wisp: &Wisp, statement: &str, key: &str) {
    let connection = rusqlite::Connection::open(wisp.home().join(store::FILE)).unwrap();
    assert_eq!(connection.execute(statement, [key]).unwrap(), 1);
}

#[test]
fn damaged_records_do_not_block_other_commands() {
    const GOOD: &str = "i-0aaaaaaaaaaaaaaa0";
    const DAMAGED: &str = "i-0bbbbbbbbbbbbbbb0";
    let wisp = Wisp::without_kvm();
    for name in ["torn", "lost", "kept"] {
        wisp.run(&["volume", "create", "1", "--name", name]).expect_code(0);
    }
    let volume = |name: &str| {
        let volumes = json(&wisp, &["volume", "ls"]);
        let volumes = volumes["Volumes"].as_array().unwrap().clone();
        let tagged = |volume: &&Value| volume["Tags"].as_array().unwrap().iter().any(|tag| tag["Value"] == name);
        volumes.iter().find(tagged).unwrap()["VolumeId"].as_str().unwrap().to_string()
    };
    let [torn, lost] = ["torn", "lost"].map(volume);
    let store = Store::open(wisp.home()).unwrap();
    for id in [GOOD, DAMAGED] {
        store.write::<_, StoreError>(|tx| tx.insert(&mut stopped_instance(id))).unwrap();
        let dir = wisp.home().join("instances").join(id);
        fs::create_dir_all(dir.join("vmm")).unwrap();
        for name in ["config.json", "vmm/end.json", "vmm/usage"] {
            fs::write(dir.join(name), [0xff; 100]).unwrap();
        }
    }
    drop(store);
    // A file that belongs to no volume makes the next command check all volumes.
    fs::write(wisp.home().join("volumes/stray.qcow2"), "").unwrap();
    fs::write(wisp.home().join(format!("volumes/{torn}.1.qcow2")), "QFI\u{fb}").unwrap();
    change_store(&wisp, "UPDATE instances SET record = substr(record, 1, 40) WHERE key = ?1", DAMAGED);
    change_store(&wisp, "UPDATE volumes SET record = '{}' WHERE key = ?1", &lost);

    let listed = wisp.run(&["ls"]).expect_code(0);
    assert!(listed.text().contains(GOOD) && !listed.text().contains(DAMAGED), "{}", listed.text());
    for damaged in [format!("damaged record (instances {DAMAGED})"), format!("damaged record (volumes {lost})")] {
        assert_eq!(listed.stderr.matches(&damaged).count(), 1, "{damaged}: {}", listed.stderr);
    }
    wisp.run(&["show", GOOD]).expect_code(0);
    wisp.run(&["volume", "resize", "kept", "2"]).expect_code(0);
    let failed = wisp.run(&["volume", "resize", "torn", "2"]).expect_code(1);
    assert!(failed.stderr.contains(&torn), "{}", failed.stderr);
    wisp.run(&["terminate", GOOD]).expect_code(0);
    assert!(!wisp.home().join("instances").join(GOOD).exists());
    // The directory and the file may belong to the unreadable records, so both stay.
    assert!(wisp.home().join("instances").join(DAMAGED).exists());
    assert!(wisp.home().join(format!("volumes/{lost}.1.qcow2")).exists());

    let terminated = wisp.run(&["terminate", DAMAGED]).expect_code(0);
    assert!(terminated.stderr.contains(DAMAGED), "{}", terminated.stderr);
    assert!(!wisp.home().join("instances").join(DAMAGED).exists());
    wisp.run(&["volume", "rm", "torn"]).expect_code(0);
    let listed = wisp.run(&["ls"]).expect_code(0);
    assert!(!listed.stderr.contains(DAMAGED), "{}", listed.stderr);
}
