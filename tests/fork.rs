//! Instances that go on from another's exact state.

mod common;

use std::collections::BTreeSet;

use common::Wisp;
use common::instances::{exec, files, launch};

/// Waits in the guest until its process has counted further.
const COUNTS_ON: &str =
    "c=$(cat /tmp/count); until d=$(cat /tmp/count) && [ -n \"$d\" ] && [ \"$d\" != \"$c\" ]; do :; done";

#[test]
fn forks_go_on_from_where_the_original_is_and_apart_from_it() {
    let wisp = Wisp::new();
    let original = launch(&wisp, &["--name", "origin", "--volume", "size=1,name=data"]).expect_code(0).text();
    let original = original.trim();
    let count = "(i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 1; done) > /dev/null 2>&1 &";
    exec(&wisp, original, &format!("{count} echo before > /root/file; echo data > /dev/vdb; sync"));
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
        assert!(drawn.insert(lines[2].to_string()), "two of them drew the same random numbers");
    }
    for id in [original, forks[0], forks[1]] {
        let text = exec(&wisp, id, "cat /root/file; read d < /dev/vdb; echo $d");
        assert_eq!(text, format!("{id}\n{id}"), "what one writes is its own");
    }

    // They need the original no more, and are instances as any other.
    wisp.run(&["terminate", original, forks[1]]).expect_code(0);
    wisp.run(&["stop", forks[0]]).expect_code(0);
    wisp.run(&["start", forks[0]]).expect_code(0);
    assert_eq!(exec(&wisp, forks[0], "cat /root/file; hostname"), format!("{}\n{}", forks[0], &forks[0][..10]));
    wisp.run(&["terminate", forks[0]]).expect_code(0);
    let listed = wisp.run(&["volume", "ls"]).expect_code(0).text();
    assert!(files(&wisp, "volumes").is_empty() || listed.contains("data"), "{listed}");
}

#[test]
fn what_cannot_be_forked_is_refused() {
    let wisp = Wisp::new();
    launch(&wisp, &["--name", "early", "--wait", "none"]).expect_code(0);
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
