//! What a host does to its processes: one stands still for seconds, its clock jumps, nobody reads the
//! console. Each ends in a right state or a clear error, and whoever else is there notices nothing.
//! `docs/reliability.md` lists all that is thrown at Wisp.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::instances::{exec, json, launch};
use common::{DEADLINE, Wisp};

/// An instance's monitor and its keeper.
fn processes(wisp: &Wisp, instance: &str) -> Vec<i32> {
    let id = folder(wisp, instance).file_name().unwrap().to_str().unwrap().to_string();
    common::monitors(wisp.home()).into_iter().filter(|(_, of)| of.to_string() == id).map(|(pid, _)| pid).collect()
}

fn signal(processes: &[i32], signal: i32) {
    for pid in processes {
        // SAFETY: the process is this test's own, and nobody has waited for it.
        assert_eq!(unsafe { libc::kill(*pid, signal) }, 0);
    }
}

fn state(wisp: &Wisp, instance: &str) -> String {
    let shown = json(wisp, &["show", instance]);
    shown["Reservations"][0]["Instances"][0]["State"]["Name"].as_str().unwrap().to_string()
}

fn folder(wisp: &Wisp, instance: &str) -> std::path::PathBuf {
    let shown = json(wisp, &["show", instance]);
    let id = shown["Reservations"][0]["Instances"][0]["InstanceId"].as_str().unwrap().to_string();
    wisp.home().join("instances").join(id)
}

#[test]
fn a_monitor_that_stands_still_is_told_of_and_goes_on() {
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "still", "--network", "none"]).expect_code(0);
    launch(&wisp, &["--name", "other", "--network", "none", "--overcommit"]).expect_code(0);
    exec(&wisp, "still", "(while true; do echo tick; sleep 1; done) > /tmp/ticks 2>&1 &");
    let monitor = processes(&wisp, "still");
    assert_eq!(monitor.len(), 2, "{monitor:?}");
    signal(&monitor, libc::SIGSTOP);

    // What is known without it is said, and others are served.
    assert!(wisp.run(&["ls"]).expect_code(0).text().contains("still"));
    assert_eq!(exec(&wisp, "other", "echo here"), "here");
    signal(&monitor, libc::SIGCONT);
    let before: u64 = exec(&wisp, "still", "wc -l < /tmp/ticks").parse().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while exec(&wisp, "still", "wc -l < /tmp/ticks").parse::<u64>().unwrap() <= before {
        assert!(Instant::now() < deadline, "the guest's clock stands still");
    }
    assert_eq!(exec(&wisp, "still", "dmesg | grep -i 'soft lockup'; true"), "");

    // One that does not go on by itself is ended, and its instance starts again.
    signal(&monitor, libc::SIGSTOP);
    let stopped = wisp.run(&["stop", "still", "--force"]).expect_code(0);
    assert!(stopped.stderr.contains("its monitor did not answer, and was killed"), "{}", stopped.stderr);
    assert_eq!(state(&wisp, "still"), "stopped");
    monitor.iter().for_each(|pid| common::wait_until_gone((*pid).try_into().unwrap()));
    wisp.run(&["start", "still", "--wait", "running"]).expect_code(0);
    wisp.run(&["terminate", "still", "other"]).expect_code(0);
}

/// A library that has processes see another wall clock: by as many seconds as `WISP_TEST_CLOCK` says.
fn other_clock(folder: &Path) -> std::path::PathBuf {
    let source = "
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *now) {
            int result = syscall(SYS_clock_gettime, clock, now);
            const char *by = getenv(\"WISP_TEST_CLOCK\");
            if (result == 0 && clock == CLOCK_REALTIME && by) now->tv_sec += atol(by);
            return result;
        }
    ";
    let (file, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&file, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

#[test]
fn a_clock_that_jumps_changes_what_time_it_is_and_nothing_else() {
    const DAY: i64 = 86_400;
    let wisp = Wisp::warm();
    let tools = tempfile::tempdir().unwrap();
    let library = other_clock(tools.path());
    let at = |days: i64, words: &[&str]| {
        let mut command = wisp.command(words);
        command.env("LD_PRELOAD", &library).env("WISP_TEST_CLOCK", (days * DAY).to_string());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        assert!(output.status.success(), "{words:?}, {days} days on: {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    // What is seen by commands and the monitors that they start; KVM itself has the host's clock.
    let is_right = |days: i64| {
        let time = exec(&wisp, "it", "date -u +%s").parse::<i64>().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((time - now - days * DAY).abs() < DEADLINE.as_secs() as i64, "the guest says {time}, and it is {now}");
    };
    let launched = || json(&wisp, &["show", "it"])["Reservations"][0]["Instances"][0]["LaunchTime"].to_string();
    let size = ["launch", "--vcpus", "1", "--memory", "192M", "--network", "none", "--hibernation"];
    at(0, &[&size[..], &["--name", "before"]].concat());
    let before = json(&wisp, &["show", "before"])["Reservations"][0]["Instances"][0]["LaunchTime"].to_string();
    at(400, &[&size[..], &["--name", "it", "--overcommit"]].concat());
    assert!(launched() > before, "{} is not after {before}", launched());
    is_right(400);
    // To whoever looks, it was launched in the future.
    assert!(at(0, &["ls"]).contains("running") && at(-400, &["show", "it"]).contains("running"));
    at(-400, &["tag", "it", "when=before"]);
    // The guest's own clock jumps, too: it is told the time when it goes on.
    exec(&wisp, "it", "date -u -s @1000000000");
    at(-400, &["stop", "it", "--hibernate"]);
    at(0, &["start", "it"]);
    is_right(0);
    at(3, &["stop", "it", "--force"]);
    at(-3, &["start", "it"]);
    assert!(launched() < before, "{} is not before {before}", launched());
    is_right(0);
    at(0, &["terminate", "it", "before"]);
}

#[test]
fn a_console_that_nobody_reads_holds_nobody_up() {
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "talker", "--network", "none"]).expect_code(0);
    // One that is connected and reads nothing, and is gone in the end.
    let idle = std::os::unix::net::UnixStream::connect(folder(&wisp, "talker").join("console.sock")).unwrap();
    exec(&wisp, "talker", "seq 10000 11999 > /dev/console; echo the-last-line > /dev/console");
    let log = folder(&wisp, "talker").join("console.log");
    let deadline = Instant::now() + DEADLINE;
    while !fs::read_to_string(&log).unwrap().contains("the-last-line") {
        assert!(Instant::now() < deadline, "the console's output does not come");
        std::thread::yield_now();
    }
    let text = fs::read_to_string(&log).unwrap();
    assert!((10_000..12_000).all(|number| text.contains(&format!("{number}\r\n"))), "a line is missing");
    drop(idle);
    assert!(wisp.run(&["console", "talker"]).expect_code(0).text().contains("the-last-line"));
    wisp.run(&["terminate", "talker"]).expect_code(0);
}
