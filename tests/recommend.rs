//! Usage readings: they survive stops and kills of the VMM, and are the basis of recommendations.

mod common;

use std::fs;
use std::time::Instant;

use common::{DEADLINE, Wisp, instances, vmm_pid, wait_until_unlocked};
use machine::usage::{FILE, Reading, SampleTime, read};
use serde_json::Value;
use test_support::Steps;

const MIB: f64 = 1_048_576.0;
/// User code, which runs natively even under software KVM.
const BUSY: &str = "i=0; while [ $i -lt 10000 ]; do i=$((i + 1)); done";

fn datapoints(wisp: &Wisp) -> Vec<Value> {
    let history = instances::json(wisp, &["top", "a", "--history=336"]);
    history["Datapoints"].as_array().unwrap().clone()
}

fn sum(points: &[Value], metric: &str) -> f64 {
    points.iter().map(|point| point[metric].as_f64().unwrap()).sum()
}

fn cpu_seconds(points: &[Value]) -> f64 {
    let of_point =
        |point: &Value| point["CPUUtilization"].as_f64().unwrap() / 100.0 * point["Period"].as_f64().unwrap();
    points.iter().map(of_point).sum()
}

#[test]
fn usage_survives_kills_and_stops_and_drives_recommendations() {
    let wisp = Wisp::warm();
    let began = Instant::now();
    instances::launch(&wisp, &["--name", "a", "--network", "none"]).expect_code(0);
    let dir = wisp.instances().remove(0);
    let own = dir.join("vmm");
    let mut steps = Steps::new();
    steps.run("a recommendation needs enough data", || {
        let early = instances::json(&wisp, &["recommend", "a"]);
        assert_eq!(early["errors"][0]["code"], "InsufficientData", "{early}");
        assert!(early["errors"][0]["message"].as_str().unwrap().contains("the minimum is 5 min"), "{early}");
    });

    // The guest writes, then is busy until its VMM takes a reading.
    instances::exec(&wisp, "a", "dd if=/dev/zero of=/root/file bs=1M count=8 conv=fsync 2>/dev/null");
    let before = read(&own).unwrap().len();
    while read(&own).unwrap().len() == before {
        assert!(began.elapsed() < DEADLINE, "no reading was taken");
        instances::exec(&wisp, "a", BUSY);
    }
    let last = read(&own).unwrap().pop().unwrap();
    steps.run("readings are taken in proportion to CPU time", || {
        // The VMM takes a reading at its start, when the guest is ready, and after each five seconds of vCPU time.
        let readings = read(&own).unwrap().len() as u64;
        assert!(readings <= 3 + last.cpu_ns / 4_000_000_000, "{readings} readings of {last:?}");
    });

    // Readings survive a kill of the VMM, although no command has read them.
    let pid = i32::try_from(vmm_pid(&dir)).unwrap();
    // SAFETY: the VMM is a process of this test.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    wait_until_unlocked(&dir);
    let points = datapoints(&wisp);
    let ran = began.elapsed().as_secs_f64();
    println!("{:#?}", points.last());
    let used = cpu_seconds(&points);
    steps.run("CPU time survives a kill of the VMM", || {
        assert!((used - last.cpu_ns as f64 / 1e9).abs() < 0.01, "{used} s of {last:?}");
        assert!((3.0..=ran).contains(&used) && sum(&points, "Period") <= ran, "{used} s in {ran} s");
    });
    steps.run("disk writes survive a kill of the VMM", || {
        let written = sum(&points, "EBSWriteBytes");
        assert!((8.0 * MIB..=24.0 * MIB).contains(&written), "{written} bytes");
        assert!(sum(&points, "EBSWriteOps") >= 8.0);
    });
    steps.run("touched memory survives a kill of the VMM", || {
        let touched = points.last().unwrap()["MemoryTouchedBytes"].as_f64().unwrap();
        assert!((8.0 * MIB..=200.0 * MIB).contains(&touched), "{touched} bytes");
    });
    steps.run("a T2's launch credits are spent", || {
        // Some of a T2's 30 launch credits are spent.
        let credits = points.last().unwrap()["CPUCreditBalance"].as_f64().unwrap();
        assert!((25.0..30.0).contains(&credits), "{credits} credits");
    });

    // A VMM that starts with a full usage file makes room in it, despite its sandbox.
    let mut text = String::new();
    for number in 0..2100 {
        let moment = SampleTime { run: 1, up_ms: number * 1000, at_ms: last.moment.at_ms };
        text += &serde_json::to_string(&Reading { moment, ..last.clone() }).unwrap();
        text.push('\n');
    }
    text += &fs::read_to_string(own.join(FILE)).unwrap();
    fs::write(own.join(FILE), text).unwrap();
    wisp.run(&["start", "a", "--no-wait"]).expect_code(0);
    // Once the VMM responds, it has taken its first reading. The guest is still booting.
    let again = instances::json(&wisp, &["show", "a"]);
    assert_eq!(again["Reservations"][0]["Instances"][0]["State"]["Name"], "running");
    steps.run("a full usage file makes room", || assert!(read(&own).unwrap().len() < 1100));
    let again = datapoints(&wisp);
    steps.run("a restarted VMM adds to the usage", || {
        assert!(cpu_seconds(&again) > used && cpu_seconds(&again) < used + began.elapsed().as_secs_f64() - ran);
    });

    let recommendation = |state: &str| {
        let judged = instances::json(&wisp, &["recommend", "--least", "1"])["instanceRecommendations"][0].clone();
        let metric = |name: &str| {
            let metrics = judged["utilizationMetrics"].as_array().unwrap();
            metrics.iter().find(|metric| metric["name"] == name).unwrap()["value"].as_f64().unwrap()
        };
        assert!((0.1..=100.0).contains(&metric("Cpu")), "{state}: {judged}");
        assert!((1.0..=110.0).contains(&metric("Memory")), "{state}: {judged}");
        assert_eq!((&judged["confidence"], &judged["instanceName"]), (&"low".into(), &"a".into()), "{state}");
        judged
    };
    steps.run("a running instance gets a recommendation", || drop(recommendation("running")));
    wisp.run(&["stop", "--force", "a"]).expect_code(0);
    let judged = steps.require("a stopped instance gets a recommendation", || recommendation("stopped"));
    steps.run("a busy instance is under-provisioned", || {
        // The instance was nearly always busier than its type's baseline of 10%.
        assert_eq!(judged["finding"], "UNDER_PROVISIONED", "{judged}");
        let first = judged["recommendationOptions"][0]["instanceType"].as_str().unwrap();
        let shown = wisp.run(&["recommend", "a", "--least", "1"]).expect_code(0);
        assert!(shown.text().contains("Under-provisioned") && shown.text().contains(first), "{}", shown.text());
        assert!(shown.stderr.contains(&format!("wisp modify a --type {first}; wisp start a")), "{}", shown.stderr);
    });
    steps.run("a stop keeps the usage", || {
        let stopped = datapoints(&wisp);
        assert!(cpu_seconds(&stopped) >= cpu_seconds(&again));
    });

    wisp.run(&["terminate", "a"]).expect_code(0);
    steps.run("termination removes the usage", || {
        let id = dir.file_name().unwrap().to_str().unwrap();
        let history = instances::json(&wisp, &["top", id, "--history"]);
        assert_eq!(history["Datapoints"], Value::Array(vec![]));
        assert_eq!(wisp.run(&["recommend"]).expect_code(0).text(), "");
    });
}
