//! Concurrent commands on separate and shared instances succeed or are refused, and leave a consistent state.

mod common;

use std::collections::BTreeSet;
use std::process::Output;
use std::thread;

use common::Wisp;
use common::instances::{files, json};

const PROCESSES: usize = 20;
const ROUNDS: usize = 5;
const SHARED: &str = "shared";

fn ask(wisp: &Wisp, words: &[&str]) -> Output {
    let output = wisp.command(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let is_refused = output.status.code() == Some(1) && said.contains("IncorrectInstanceState");
    assert!(output.status.success() || is_refused, "{words:?}: {} {said}", output.status);
    output
}

/// Runs ten commands in sequence. The last one terminates the instance that the first one launched.
fn round(wisp: &Wisp, number: usize) {
    let done = |words: &[&str]| {
        let output = ask(wisp, words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let launch = ["launch", "--vcpus", "1", "--memory", "128M", "--overcommit", "--network", "none", "--no-wait"];
    let id = done(&launch);
    let id = id.trim();
    let value = format!("number={number}");
    done(&["tag", id, &value]);
    ask(wisp, &["tag", SHARED, &value]);
    assert!(done(&["ls"]).contains(id));
    done(&["stop", "--force", id]);
    ask(wisp, &["stop", "--force", SHARED]);
    done(&["modify", id, "--type", "t3.nano"]);
    ask(wisp, &["start", SHARED, "--no-wait"]);
    assert!(done(&["show", id]).contains("stopped"));
    done(&["terminate", id]);
}

#[test]
fn thousand_concurrent_commands_leave_consistent_state() {
    let wisp = Wisp::warm();
    let launch = ["launch", "--vcpus", "1", "--memory", "128M", "--network", "none", "--no-wait", "--name", SHARED];
    wisp.run(&launch).expect_code(0);
    thread::scope(|scope| {
        for number in 0..PROCESSES {
            let wisp = &wisp;
            scope.spawn(move || (0..ROUNDS).for_each(|_| round(wisp, number)));
        }
    });
    ask(&wisp, &["stop", "--force", SHARED]);
    let all = json(&wisp, &["ls"]);
    let instances: Vec<_> =
        all["Reservations"].as_array().unwrap().iter().flat_map(|it| it["Instances"].as_array().unwrap()).collect();
    let ids: BTreeSet<_> = instances.iter().map(|it| it["InstanceId"].as_str().unwrap()).collect();
    let count = |name: &str| instances.iter().filter(|it| it["State"]["Name"] == name).count();
    assert_eq!((ids.len(), count("terminated"), count("stopped")), (101, 100, 1));
    assert_eq!(files(&wisp, "instances").len(), 1, "only the shared instance has a directory");
    assert_eq!(files(&wisp, "volumes").len(), 1, "only the shared instance has a volume");
    wisp.run(&["terminate", SHARED]).expect_code(0);
    common::await_no_processes_of(&wisp);
    assert!(files(&wisp, "instances").is_empty() && files(&wisp, "volumes").is_empty());
}
