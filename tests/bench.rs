//! `wisp bench`: types side by side, in real guests.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::Wisp;
use serde_json::Value;

/// The smallest ones, with one vCPU and with two; and one that no guest is as large as.
const TYPES: &str = "t2.nano,t3.nano,m5.24xlarge";

#[track_caller]
fn result<'a>(bench: &'a Value, measure: &str, instance_type: &str) -> &'a Value {
    let of = |list: &'a Value, key: &str, name: &str| {
        list.as_array().unwrap().iter().find(|one| one[key] == name).unwrap_or_else(|| panic!("no {name}: {list}"))
    };
    of(&of(&bench["Measures"], "Name", measure)["Results"], "InstanceType", instance_type)
}

#[test]
fn types_are_compared_by_workloads_and_by_a_command() {
    let wisp = Wisp::warmable();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (json, html) = (path("bench.json"), path("bench.html"));
    let command = "test $(nproc) = 1 || { echo '<not> one' >&2; exit 3; }";
    let what = ["--workloads", "integer-all,network-latency,warm-launch", "--command", command];
    let how = ["--runs", "2", "--time", "50", "--overcommit", "--json", &json, "--html", &html];
    let outcome = wisp.run(&[&["bench", "--types", TYPES], &what[..], &how[..]].concat());
    // The command failed in one of them.
    let text = outcome.expect_code(1).text();
    assert!(text.contains("m5.24xlarge was not measured") && text.contains("t2.nano"), "{text}");

    let page = fs::read_to_string(&html).unwrap();
    let bench: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let bench = &bench["Bench"];
    for measure in ["integer-all", "network-latency", "warm-launch"] {
        for instance_type in ["t2.nano", "t3.nano"] {
            let result = result(bench, measure, instance_type);
            let samples: Vec<f64> =
                result["Samples"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
            assert!(samples.len() == 2 && samples.iter().all(|figure| *figure > 0.0), "{measure}: {result}");
            let (min, p95) = (result["Min"].as_f64().unwrap(), result["P95"].as_f64().unwrap());
            assert_eq!((min, p95), (samples[0].min(samples[1]), samples[0].max(samples[1])), "{result}");
            assert!(result["LimitOf"] == "type" || result["LimitOf"] == "host", "{result}");
        }
        assert!(page.contains(&format!("id=\"{measure}\"")));
    }
    let [one, two] = ["t2.nano", "t3.nano"].map(|instance_type| result(bench, "command", instance_type));
    assert_eq!((one["Samples"].as_array().unwrap().len(), &one["NotMeasured"]), (2, &Value::Null));
    assert_eq!(two["NotMeasured"], "exit code 3: <not> one");
    assert_eq!(bench["Choice"]["InstanceType"], "t2.nano");
    let limits = &bench["InstanceTypes"][1]["Limits"];
    assert_eq!((&limits["CpuCredits"], &limits["RootVolume"]["Iops"]["Peak"]), (&"unlimited".into(), &3000.into()));
    let refused = bench["InstanceTypes"][2]["Failed"].as_str().unwrap();
    assert!(refused.contains("InsufficientInstanceCapacity"), "{refused}");
    // The page has four charts, and what the guest said is no tag of it.
    assert!(page.matches("<svg").count() == 4 && !page.contains("<not>") && page.contains("&lt;not&gt; one"));

    // What is in the data directory afterwards: no machine, and the program for the next bench.
    assert_eq!(wisp.runs(), Vec::<std::path::PathBuf>::new());
    assert_eq!(wisp.home().join("wisp-workload").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    common::await_no_processes_of(&wisp);
}

#[test]
fn an_interrupt_ends_the_guest_too() {
    let wisp = Wisp::warmable();
    wisp.run(&["image", "warm", "tiny", "--type", "t2.nano"]).expect_code(0);
    let mut running = wisp.start(&["bench", "--types", "t2.nano", "--command", "sleep 600", "--overcommit"]);
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while !wisp.runs().iter().any(|folder| folder.join("control.sock").exists()) {
        assert!(std::time::Instant::now() < deadline, "no guest came up");
        assert!(!running.has_ended_within(std::time::Duration::from_millis(20)), "it ended");
    }
    running.signal(libc::SIGINT);
    let outcome = running.wait().expect_code(130);
    assert!(outcome.stderr.contains("no instance of the bench is left"), "{}", outcome.stderr);
    assert_eq!(wisp.runs(), Vec::<std::path::PathBuf>::new());
    common::await_no_processes_of(&wisp);
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let wisp = Wisp::new();
    for (args, text) in [
        (&["--types", "t3.micr0"][..], "Did you mean t3.micro?"),
        (&["--types", "t3.micro", "--workloads", "gpu"], "'gpu' is no workload; there are: integer-one"),
        (&["--types", "t3.micro", "--html", "/no/such/folder/page.html"], "no such folder"),
        (&["--types", "t3.micro", "no-such-image"], "no-such-image"),
    ] {
        let outcome = wisp.run(&[&["bench"], args].concat()).expect_code(1);
        assert!(outcome.stderr.contains(text), "{args:?}: {}", outcome.stderr);
    }
    let outcome = wisp.run(&["bench", "--types", "m5.24xlarge,p3.2xlarge", "--workloads", "boot"]).expect_code(1);
    let text = outcome.text();
    assert!(text.contains("at most 64 vCPUs") && text.contains("GPUs"), "{text}");
}
