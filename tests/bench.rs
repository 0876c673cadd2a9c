//! `wisp bench`: instance types compared in real guests.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::Wisp;
use serde_json::Value;

/// Two types of the same size, which share a template, and a type that does not fit on this host.
const TYPES: &str = "t3.nano,t3a.nano,m5.24xlarge";

#[track_caller]
fn result<'a>(bench: &'a Value, measure: &str, instance_type: &str) -> &'a Value {
    let of = |list: &'a Value, key: &str, name: &str| {
        list.as_array().unwrap().iter().find(|one| one[key] == name).unwrap_or_else(|| panic!("no {name}: {list}"))
    };
    of(&of(&bench["Measures"], "Name", measure)["Results"], "InstanceType", instance_type)
}

#[test]
fn bench_compares_types_by_workloads_and_command() {
    let wisp = Wisp::warmable();
    measure_and_compare(&wisp);
    // The template exists from here on.
    fail_a_command(&wisp);
    interrupt(&wisp);
    // No run directories are left. Only the workload program is kept, for the next bench.
    assert_eq!(wisp.runs(), Vec::<PathBuf>::new());
    assert_eq!(wisp.home().join("wisp-workload").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    common::await_no_processes_of(&wisp);
}

fn measure_and_compare(wisp: &Wisp) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (json, html) = (path("bench.json"), path("bench.html"));
    let what = ["--workloads", "integer-all,network-latency,warm-launch", "--command", "test $(nproc) = 2"];
    let how = ["--runs", "2", "--time", "50", "--overcommit", "--json", &json, "--html", &html];
    let price = ["--price", "t3.nano=2,t3a.nano=1", "--within", "100000"];
    let outcome = wisp.run(&[&["bench", "--types", TYPES], &what[..], &how[..], &price].concat());
    let text = outcome.expect_code(0).text();
    assert!(text.contains("m5.24xlarge was not fully measured") && text.contains("t3a.nano, at $1 per hour"), "{text}");

    let page = fs::read_to_string(&html).unwrap();
    let bench: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let bench = &bench["Bench"];
    for measure in ["integer-all", "network-latency", "warm-launch", "command"] {
        for instance_type in ["t3.nano", "t3a.nano"] {
            let result = result(bench, measure, instance_type);
            let samples: Vec<f64> =
                result["Samples"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
            assert!(samples.len() == 2 && samples.iter().all(|figure| *figure > 0.0), "{measure}: {result}");
            let (min, p95) = (result["Min"].as_f64().unwrap(), result["P95"].as_f64().unwrap());
            assert_eq!((min, p95), (samples[0].min(samples[1]), samples[0].max(samples[1])), "{result}");
            assert!(result["LimitOf"] == "type" || result["LimitOf"] == "host", "{result}");
            // Two runs are too few for an interval.
            assert!(result["Interval"].is_null() && result["Difference"] == "too-few-runs", "{result}");
        }
        assert!(page.contains(&format!("id=\"{measure}\"")));
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert_eq!(bench["Choice"]["InstanceType"], "t3a.nano");
    // The host's memory suffices for two small guests, which run at the same time on the same CPUs.
    assert_eq!((&bench["Runs"], &bench["StoppedBy"]), (&2.into(), &"runs".into()));
    assert_eq!(bench["ConcurrentGuests"], true);
    assert_eq!(bench["InstanceTypes"][0]["Price"], 2.0);
    pinned_or_refused(bench);
    let limits = &bench["InstanceTypes"][0]["Limits"];
    assert_eq!((&limits["CpuCredits"], &limits["RootVolume"]["Iops"]["Peak"]), (&"unlimited".into(), &3000.into()));
    let refused = bench["InstanceTypes"][2]["Failed"].as_str().unwrap();
    assert!(refused.contains("InsufficientInstanceCapacity"), "{refused}");
}

/// Checks that both types used the same CPUs, or that this host has fewer CPUs than a guest has vCPUs.
#[track_caller]
fn pinned_or_refused(bench: &Value) {
    let [one, other] = [0, 1].map(|index| &bench["InstanceTypes"][index]);
    assert_eq!((&one["PinnedCpus"], &one["NotPinned"]), (&other["PinnedCpus"], &other["NotPinned"]));
    match one["PinnedCpus"].as_array() {
        Some(cpus) => assert_eq!(cpus.len(), 2, "{one}"),
        None => assert!(one["NotPinned"].as_str().unwrap().contains("usable CPUs: 1, vCPUs: 2"), "{one}"),
    }
}

fn fail_a_command(wisp: &Wisp) {
    let command = "echo '<not> today' >&2; exit 3";
    let args = ["bench", "--types", "t3.nano", "--workloads", "disk-random-read-32", "--command", command];
    let how = ["--runs", "1", "--time", "50", "--overcommit", "--output", "json"];
    let outcome = wisp.run(&[&args[..], &how].concat()).expect_code(1);
    let bench: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let bench = &bench["Bench"];
    assert_eq!(result(bench, "command", "t3.nano")["NotMeasured"], "exit code 3: <not> today");
    let disk = result(bench, "disk-random-read-32", "t3.nano");
    assert!(disk["NotMeasured"].is_null() && disk["Median"].as_f64().unwrap() > 0.0, "{disk}");
    assert_eq!(bench["Choice"]["InstanceType"], Value::Null);
}

fn interrupt(wisp: &Wisp) {
    let mut running = wisp.start(&["bench", "--types", "t3.nano", "--command", "sleep 600", "--overcommit"]);
    let deadline = Instant::now() + common::DEADLINE;
    while !wisp.runs().iter().any(|dir| dir.join("vmm/control.sock").exists()) {
        assert!(Instant::now() < deadline, "no guest started");
        assert!(!running.has_ended_within(Duration::from_millis(20)), "the bench ended early");
    }
    running.signal(libc::SIGINT);
    let outcome = running.wait().expect_code(130);
    assert!(outcome.stderr.contains("All instances of the bench were terminated"), "{}", outcome.stderr);
}

#[test]
fn invalid_bench_requests_are_refused() {
    let wisp = Wisp::new();
    for (args, text) in [
        (&["--types", "t3.micr0"][..], "Did you mean t3.micro?"),
        (&["--types", "t3.micro", "--workloads", "gpu"], "unknown workload 'gpu'; the workloads are: integer-one"),
        (&["--types", "t3.micro", "--html", "/no/such/directory/page.html"], "no such directory"),
        (&["--types", "t3.micro", "--prices", "/no/such/prices.csv"], "cannot read /no/such/prices.csv"),
        (&["--types", "t3.micro", "no-such-image"], "no-such-image"),
    ] {
        let outcome = wisp.run(&[&["bench"], args].concat()).expect_code(1);
        assert!(outcome.stderr.contains(text), "{args:?}: {}", outcome.stderr);
    }
    let outcome = wisp.run(&["bench", "--types", "m5.24xlarge,p3.2xlarge", "--workloads", "boot"]).expect_code(1);
    let text = outcome.text();
    assert!(text.contains("at most 64 vCPUs") && text.contains("GPUs"), "{text}");
}
