//! Memory that a guest frees returns to the host, and nothing else of its memory changes.

mod common;

use std::fs;
use std::path::Path;
use std::time::Instant;

use common::machines::{Machine, config};
use common::{DEADLINE, Wisp};
use machine::MachineConfig;
use machine::control::{ControlRequest, GuestMemoryRecord, Message};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const USED: u64 = 64 * MIB;
/// More than the guest holds when it is idle, and less than with [`USED`] more.
const IDLE: u64 = 60 * MIB;

/// Keeps data in the guest's memory, and prints its digest.
const KEEP: &str = "mount -t tmpfs keep /mnt; cp /proc/self/exe /mnt/data; sha256sum < /mnt/data";
const CHECK: &str = "sha256sum < /mnt/data";

/// Uses 64 MiB in huge pages, because each page fault takes thousands of emulated instructions, and frees them.
const USE: &str = "echo always > /sys/kernel/mm/transparent_hugepage/enabled
    dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null";

/// Waits until the balloon's interrupt shows that the host has released reported memory.
const AWAIT_REPORT: &str = "device=$(basename /sys/bus/virtio/drivers/virtio_balloon/virtio*)
    count() { grep $device /proc/interrupts; }
    c=$(count); while [ \"$(count)\" = \"$c\" ]; do sleep 1; done";

/// Returns the largest amount of memory that the VMM has held (`VmHWM`).
fn peak(machine: &mut Machine) -> u64 {
    let pid = machine.status().sandbox.pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Uses and frees memory in the guest, and waits until the host holds less than [`IDLE`].
fn assert_freed_memory_returns(machine: &mut Machine) {
    machine.shell(USE);
    assert!(peak(machine) > USED + IDLE / 4, "the guest did not use memory");
    let deadline = Instant::now() + DEADLINE;
    while machine.status().guest_resident_bytes >= IDLE {
        assert!(Instant::now() < deadline, "{:?}", machine.status());
        machine.shell(AWAIT_REPORT);
    }
}

fn new_statistics(machine: &mut Machine) -> GuestMemoryRecord {
    let before = machine.status().guest_memory.expect("the guest has a balloon driver");
    assert_eq!(machine.ask(&ControlRequest::RefreshGuestMemory), Message::Done);
    let deadline = Instant::now() + DEADLINE;
    loop {
        machine.shell("true");
        let now = machine.status().guest_memory.expect("the guest has a balloon driver");
        if now != before {
            return now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
    }
}

/// Ends the machine by a request, and returns its directory.
fn end(mut machine: Machine, request: &ControlRequest) -> TempDir {
    let message = machine.ask(request);
    assert!(matches!(message, Message::Ended { .. }), "{message:?}");
    machine.vmm.wait().unwrap();
    std::mem::replace(&mut machine.dir, tempfile::tempdir().unwrap())
}

fn hibernate(machine: Machine, saved: &Path) -> TempDir {
    end(machine, &ControlRequest::Save { dir: saved.into() })
}

#[test]
fn freed_memory_returns_to_host_and_snapshots_stay_exact() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let [first, second, fork] = ["first", "second", "fork"].map(|name| dir.path().join("vmm").join(name));
    [&first, &second, &fork].into_iter().for_each(|saved| fs::create_dir_all(saved).unwrap());
    let config = MachineConfig { memory_mib: 192, ..config(&wisp) };
    let restore = |dir, saved| {
        let mut machine = Machine::start_or_restore(&wisp, dir, &config, Some(saved));
        machine.wait_until_ready();
        machine
    };
    let mut machine = Machine::start(&wisp, dir, &config);
    machine.wait_until_ready();
    let digest = machine.shell(KEEP);
    assert_freed_memory_returns(&mut machine);
    let statistics = new_statistics(&mut machine);
    assert!((140 * MIB..192 * MIB).contains(&statistics.total_bytes), "{statistics:?}");
    assert!(statistics.used_bytes() < USED, "{statistics:?}");

    let forked = machine.ask(&ControlRequest::Fork { dir: fork.clone(), layers: Vec::new() });
    assert!(matches!(forked, Message::Saved { .. }), "{forked:?}");
    assert_eq!(machine.shell(CHECK), digest);

    // The restored machine's memory is mapped from the snapshot, so released pages read as in its file.
    let mut machine = restore(hibernate(machine, &first), &first);
    assert_eq!(machine.shell(CHECK), digest);
    assert_freed_memory_returns(&mut machine);
    assert_eq!(machine.shell(CHECK), digest);

    // This snapshot contains only the pages that differ from the first one.
    let dir = hibernate(machine, &second);
    assert!(second.join("base").exists(), "the second snapshot is complete");
    let machine = restore(dir, &second);
    assert_eq!(machine.shell(CHECK), digest);

    let dir = end(machine, &ControlRequest::Kill { by: "a test".into() });
    assert_eq!(restore(dir, &fork).shell(CHECK), digest);
}
