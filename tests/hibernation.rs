//! Hibernation: instances are stopped with their memory and restored from it.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::instances::{exec, json, launch};
use common::wait::{Changes, pids, wait_for_path};
use common::{Outcome, Wisp, vmm_pid, wait_until_gone, wait_until_unlocked};
use machine::control::{ControlClient, ControlRequest, Message};
use rustix::fs::inotify::WatchFlags;

fn state(wisp: &Wisp) -> (String, String) {
    let shown = json(wisp, &["show", "sleeper"]);
    let instance = &shown["Reservations"][0]["Instances"][0];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    (text(&instance["State"]["Name"]), text(&instance["StateReason"]["Code"]))
}

fn hibernated() -> (String, String) {
    ("stopped".into(), "Client.UserInitiatedHibernate".into())
}

/// Asserts that the guest still has the boot ID `boot`, its process is running, and its clock is right.
fn assert_resumed(wisp: &Wisp, boot: &str) {
    let script = "cat /proc/sys/kernel/random/boot_id; c=$(cat /tmp/count)
        until d=$(cat /tmp/count) && [ -n \"$d\" ] && [ \"$d\" != \"$c\" ]; do :; done; date +%s";
    let text = exec(wisp, "sleeper", script);
    let (id, time) = text.split_once('\n').unwrap();
    assert_eq!(id, boot);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) <= 3, "the guest's clock shows {time}, and the host's shows {now}");
}

/// Asserts that every VMM thread has a seccomp filter, including the device threads, which start before the guest.
fn assert_filtered(dir: &Path) {
    let mut control = ControlClient::connect(&dir.join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Status).unwrap();
    let Message::Status(status) = control.receive(Some(common::DEADLINE)).unwrap() else { panic!("no status") };
    let threads = std::fs::read_dir(format!("/proc/{}/task", status.sandbox.pid)).unwrap();
    let texts: Vec<_> = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status"))).collect();
    assert!(texts.len() >= 5);
    for text in texts.into_iter().flatten() {
        assert!(text.contains("Seccomp:\t2"), "{text}");
    }
}

fn refused(outcome: Outcome, code: &str) {
    let outcome = outcome.expect_code(1);
    assert!(outcome.stderr.contains(code), "{}", outcome.stderr);
}

#[test]
fn hibernated_instance_resumes_with_its_memory() {
    let wisp = Wisp::new();
    launch(&wisp, &["--name", "sleeper", "--hibernation"]).expect_code(0);
    let count = "(i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 1; done) > /dev/null 2>&1 &";
    exec(&wisp, "sleeper", &format!("{count} echo kept > /root/file"));
    let boot = exec(&wisp, "sleeper", "cat /proc/sys/kernel/random/boot_id");
    let shown = json(&wisp, &["show", "sleeper"]);
    let id = shown["Reservations"][0]["Instances"][0]["InstanceId"].as_str().unwrap().to_string();
    assert_eq!(shown["Reservations"][0]["Instances"][0]["HibernationOptions"]["Configured"], true);
    let dir = wisp.home().join("instances").join(&id);

    wisp.run(&["stop", "sleeper", "--hibernate"]).expect_code(0);
    assert_eq!(state(&wisp), hibernated());
    assert!(wisp.run(&["ls"]).text().contains("stopped (hibernated)"));
    refused(wisp.run(&["modify", "sleeper", "--type", "t2.small"]), "IncorrectInstanceState");
    refused(wisp.run(&["stop", "sleeper", "--hibernate"]), "IncorrectInstanceState");
    wisp.run(&["start", "sleeper"]).expect_code(0);
    assert_resumed(&wisp, &boot);
    assert!(!dir.join("vmm/hibernated/state").exists(), "the snapshot still exists after the restore");
    assert_filtered(&dir);

    // If the command is killed, the VMM usually completes the save, and the next command completes the stop.
    let vmm = vmm_pid(&dir);
    let stop = wisp.start(&["stop", "sleeper", "--hibernate"]);
    wait_for_path(&dir.join("vmm/hibernated/memory"));
    stop.signal(libc::SIGKILL);
    stop.wait();
    let ended = wisp.run(&["ls"]).expect_code(0);
    if state(&wisp).0 == "running" {
        assert!(ended.stderr.contains("interrupted"), "{}", ended.stderr);
        wisp.run(&["stop", "sleeper", "--hibernate"]).expect_code(0);
    }
    wait_until_gone(vmm);
    assert_eq!(state(&wisp), hibernated());

    // A damaged snapshot is refused and kept. With --cold, the instance boots without its snapshot.
    let saved = dir.join("vmm/hibernated/state");
    let sound = std::fs::read(&saved).unwrap();
    let mut damaged = sound.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&saved, &damaged).unwrap();
    refused(wisp.run(&["start", "sleeper"]), "SHA-256 does not match");
    assert_eq!(state(&wisp), hibernated());
    std::fs::write(&saved, &sound).unwrap();
    wisp.run(&["start", "sleeper"]).expect_code(0);
    assert_resumed(&wisp, &boot);

    wisp.run(&["stop", "sleeper", "--hibernate"]).expect_code(0);
    wisp.run(&["start", "sleeper", "--cold"]).expect_code(0);
    assert_ne!(exec(&wisp, "sleeper", "cat /proc/sys/kernel/random/boot_id"), boot);
    assert_eq!(exec(&wisp, "sleeper", "cat /root/file"), "kept");

    // A VMM that is killed during the save leaves a stopped instance.
    let vmm = vmm_pid(&dir);
    let stop = wisp.start(&["stop", "sleeper", "--hibernate"]);
    wait_for_path(&dir.join("vmm/hibernated/memory"));
    // SAFETY: the VMM is a process of this test.
    unsafe { libc::kill(vmm as i32, libc::SIGKILL) };
    let stderr = stop.wait().stderr;
    // The snapshot may have been complete before the kill. Otherwise the command reports that the memory is lost.
    assert_eq!(state(&wisp).0, "stopped");
    assert!(
        state(&wisp) == hibernated() || stderr.contains("hibernation failed, so the instance was stopped"),
        "{stderr}"
    );
    wisp.run(&["terminate", "sleeper"]).expect_code(0);
    assert!(wisp.instances().is_empty());
}

/// Returns the supervisor of a VMM that restores a snapshot, as soon as it runs.
fn restoring_vmm_pid(dir: &Path) -> u32 {
    let path = dir.to_str().unwrap().as_bytes();
    let is_it = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        // The supervisor leads a session. The processes that it forks have the same arguments, but do not.
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The session is the fourth field after the command's name (proc_pid_stat(5)).
        let session = status.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(3));
        let is_leader = session == Some(pid.to_string().as_str());
        is_leader && words.clone().any(|word| word == path) && words.any(|word| word == b"--restore")
    };
    // The VMM opens files of its directory when it starts.
    let changes = Changes::new();
    changes.add(dir, WatchFlags::OPEN | WatchFlags::CREATE | WatchFlags::MODIFY).unwrap();
    loop {
        if let Some(pid) = pids().map(|pid| pid as u32).find(is_it) {
            return pid;
        }
        assert!(changes.has_next(), "no restoring VMM was found");
    }
}

/// Kills the restoring VMM after an increasing delay, until a kill comes after the guest has started.
/// Returns the number of earlier kills, which leave the instance hibernated.
fn kill_while_restoring(wisp: &Wisp, dir: &Path) -> u32 {
    exec(wisp, "sleeper", "echo kept > /root/file; sync; touch /tmp/here");
    wisp.run(&["stop", "sleeper", "--hibernate"]).expect_code(0);
    let mut recovered = 0;
    for delay in (0..).map(Duration::from_millis) {
        let mut start = wisp.start(&["start", "sleeper"]);
        let vmm = restoring_vmm_pid(dir);
        start.has_ended_within(delay);
        // SAFETY: the VMM is a process of this test.
        unsafe { libc::kill(vmm as i32, libc::SIGKILL) };
        start.wait();
        wait_until_gone(vmm);
        // The killed process is the supervisor. The VMM ends with it.
        wait_until_unlocked(dir);
        let state = state(wisp);
        assert_eq!(state.0, "stopped", "{delay:?}");
        if state != hibernated() {
            break;
        }
        recovered += 1;
    }
    recovered
}

#[test]
fn vmm_killed_during_restore_leaves_hibernated_or_stopped_instance() {
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "sleeper", "--hibernation"]).expect_code(0);
    let dir = wisp.instances().remove(0);
    // On a busy host, even the first kill may come after the guest has started.
    let deadline = Instant::now() + common::DEADLINE;
    while kill_while_restoring(&wisp, &dir) == 0 {
        assert!(Instant::now() < deadline, "no kill came before the first instruction");
        wisp.run(&["start", "sleeper"]).expect_code(0);
    }
    assert!(!dir.join("vmm/hibernated").exists());
    wisp.run(&["start", "sleeper"]).expect_code(0);
    assert_eq!(exec(&wisp, "sleeper", "cat /root/file; [ -e /tmp/here ] || echo booted"), "kept\nbooted");

    // A directory at the file's path makes the save fail. The instance is stopped without its memory.
    std::fs::create_dir_all(dir.join("vmm/hibernated/memory/obstacle")).unwrap();
    let stopped = wisp.run(&["stop", "sleeper", "--hibernate"]).expect_code(0);
    assert!(
        stopped.stderr.contains("hibernation failed, so the instance was stopped without saving its memory"),
        "{}",
        stopped.stderr
    );
    assert_eq!(state(&wisp), ("stopped".into(), "Client.UserInitiatedShutdown".into()));
    assert!(!dir.join("vmm/hibernated").exists());
    wisp.run(&["terminate", "sleeper"]).expect_code(0);
}

#[test]
fn hibernation_is_refused_as_in_ec2() {
    let wisp = Wisp::new();
    launch(&wisp, &["--name", "sleeper", "--no-wait"]).expect_code(0);
    refused(wisp.run(&["stop", "sleeper", "--hibernate"]), "UnsupportedHibernationConfiguration");
    let launch_d3 = ["launch", "--hibernation", "--type", "d3.xlarge", "--overcommit", "--dry-run"];
    refused(wisp.run(&launch_d3), "UnsupportedHibernationConfiguration");
    wisp.run(&["terminate", "sleeper"]).expect_code(0);
    launch(&wisp, &["--name", "other", "--no-wait", "--hibernation"]).expect_code(0);
    refused(wisp.run(&["stop", "other", "--hibernate"]), "UnsupportedOperation");
    wisp.run(&["terminate", "other"]).expect_code(0);
}

fn allocated_bytes(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

#[test]
fn busy_guest_survives_a_hundred_hibernations() {
    let wisp = Wisp::new();
    let size = ["--vcpus", "2", "--memory", "192M", "--overcommit"];
    wisp.run(&[&["launch", "--name", "sleeper", "--hibernation"], &size[..]].concat()).expect_code(0);
    let dir = wisp.instances().remove(0).join("vmm/hibernated");
    let put = "cat > /run/busy; chmod +x /run/busy; /run/busy > /run/said 2>&1 < /dev/null &";
    wisp.run_with_input(&["exec", "sleeper", "--", "sh", "-c", put], &common::program("busy")).expect_code(0);
    let numbers: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    for round in 0..100 {
        let mut stream = wisp.start(&["exec", "sleeper", "--", "/run/busy", "stream"]);
        stream.wait_for("99\n");
        wisp.run(&["stop", "sleeper", "--hibernate"]).expect_code(0);
        // The stream is cut off, but it has lost no data before that.
        let streamed = stream.wait();
        assert_ne!(streamed.code, Some(0));
        assert!(numbers.starts_with(&streamed.text()), "round {round}: {}", streamed.text());
        assert_eq!(dir.join("base").exists(), round > 0, "only the first snapshot contains the whole memory");
        if round == 1 {
            let (changed, all) = (allocated_bytes(&dir.join("memory")), allocated_bytes(&dir.join("base")));
            assert!(0 < changed && changed < all, "{changed} of {all} bytes have changed");
        }
        wisp.run(&["start", "sleeper", "--overcommit"]).expect_code(0);
    }
    let end = "touch /run/busy.stop; until grep -q wrong /run/said; do sleep 0.1; done; cat /run/said";
    let said = exec(&wisp, "sleeper", end);
    let counts: Vec<u64> = said.split(' ').map(|part| part.split_once('=').unwrap().1.parse().unwrap()).collect();
    assert!(counts[..3].iter().all(|count| *count >= 100) && counts[3] == 0, "{said}");
    // A stop without hibernation also removes the base snapshot.
    wisp.run(&["stop", "sleeper"]).expect_code(0);
    assert!(!dir.exists());
    wisp.run(&["terminate", "sleeper"]).expect_code(0);
}
