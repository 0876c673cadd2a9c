//! What a machine may have of the host: CPU time, of a real guest's vCPUs; and what instances are given.

mod common;

use std::time::{Duration, Instant};

use common::machines::{Machine, config};
use common::{Wisp, instances};
use serde_json::json;
use wisp::vmm::control::{Message, Request};
use wisp::vmm::limits::{CpuBalance, CpuBudgetConfig};

const SECOND: u64 = 1_000_000_000;
/// What its vCPU earns, of one CPU: less than it has of the host in any case, however busy that is.
const SHARE: f64 = 0.2;
/// User code, which is native wherever a guest runs, for part of a second.
const BUSY: &str = "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done";

/// What a loop had of the host's CPUs, and for how long it ran.
fn be_busy(machine: &mut Machine) -> (Duration, Duration) {
    let (before, began) = (machine.status().cpu_time_ns, Instant::now());
    machine.shell(BUSY);
    let used = machine.status().cpu_time_ns - before;
    (Duration::from_nanos(used), began.elapsed())
}

#[test]
fn a_vcpu_has_what_it_owes_and_without_that_what_it_earns() {
    let wisp = Wisp::new();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&wisp, folder.path());
    config.cpu_budget = Some(CpuBudgetConfig {
        earned_ppm: (SHARE * 1e6) as u64,
        cap_ns: 60 * SECOND,
        can_owe: true,
        owed_cap_ns: 3600 * SECOND,
        balance: CpuBalance::default(),
    });
    let mut machine = Machine::start(&wisp, folder, &config);
    machine.wait_until_ready();
    // It booted on credit, which held nobody.
    let record = machine.status().cpu_budget.unwrap();
    assert!(record.held_ns == 0 && record.used_ns > 0, "{record:?}");
    println!("boot: {record:?}");
    let (used, took) = be_busy(&mut machine);
    println!("unlimited: {used:?} of CPU time in {took:?}");

    assert_eq!(machine.ask(&Request::SetCanOwe { can_owe: false }), Message::Done);
    let before = machine.status().cpu_budget.unwrap();
    // What was owed was charged; what was used in the moment since is a slice at the most.
    let CpuBalance { owed_ns, overdrawn_ns, .. } = before.budget.balance;
    assert!(owed_ns == 0 && overdrawn_ns < 100_000_000, "{before:?}");
    let (used, took) = be_busy(&mut machine);
    let after = machine.status().cpu_budget.unwrap();
    println!("limited: {used:?} of CPU time in {took:?}: {after:?}");
    // What was saved in the moments before, and the last slices, come besides.
    let most = took.as_secs_f64() * SHARE + before.budget.balance.saved_ns as f64 / 1e9 + 0.1;
    assert!(used.as_secs_f64() <= most, "{used:?} in {took:?} is more than {most}");
    // It was held no longer than it had to: what it earned, it had.
    assert!(after.held_ns > 0 && after.budget.balance.saved_ns < 100_000_000, "{after:?}");

    // Whoever pauses, saves or ends it need not wait for its turn: an overdrawn one would have for seconds.
    machine.shell(&format!("({BUSY}; {BUSY}; {BUSY}; {BUSY}) > /dev/null 2>&1 &"));
    let saved = machine.path("saved");
    std::fs::create_dir(&saved).unwrap();
    let request = Request::Fork { folder: saved, layers: Vec::new() };
    let Message::Saved { paused_ns } = machine.ask(&request) else { panic!("it was not saved") };
    println!("saved while it was held: paused for {paused_ns} ns");
    assert_eq!(machine.ask(&Request::SetCanOwe { can_owe: true }), Message::Done);
    let held = machine.status().cpu_budget.unwrap().held_ns;
    machine.shell(BUSY);
    let record = machine.status().cpu_budget.unwrap();
    assert_eq!((record.budget.balance.overdrawn_ns, record.held_ns), (0, held), "{record:?}");
}

#[test]
fn an_instance_has_its_type_s_limits_and_its_volumes_have_theirs() {
    let wisp = Wisp::new();
    let refused = wisp.run(&["launch", "--type", "m5.large", "--overcommit", "--cpu-credits", "standard"]);
    assert!(refused.expect_code(1).stderr.contains("InvalidParameterCombination"));

    // What its guest does meanwhile is of no interest.
    let launch = ["launch", "--network", "none", "--wait", "running", "--overcommit", "--type", "t3.nano"];
    wisp.run(&[&launch[..], &["--name", "a", "--volume", "size=1,type=gp2"]].concat()).expect_code(0);
    let shown = instances::json(&wisp, &["show", "a"]);
    let (instance, limits) = (&shown["Reservations"][0]["Instances"][0], &shown["Limits"]);
    assert_eq!(instance["CreditSpecification"]["CpuCredits"], "unlimited");
    assert!(limits["CPUCreditBalance"].is_number() && limits["CPUSurplusCreditBalance"].is_number(), "{limits}");
    assert_eq!(limits["Network"]["BytesPerSecond"]["Baseline"], 4_000_000);
    assert!(limits["Ebs"]["Iops"]["Peak"].as_u64() > limits["Ebs"]["Iops"]["Baseline"].as_u64(), "{limits}");
    assert_eq!(limits["Volumes"][0]["Iops"], json!({"Baseline": 3000, "Peak": 3000}));
    assert_eq!(limits["Volumes"][1]["Iops"], json!({"Baseline": 100, "Peak": 3000}));
    assert_eq!(limits["Volumes"][1]["BurstBalance"], 100);
    let text = wisp.run(&["show", "a"]).expect_code(0).text();
    assert!(text.contains(" of 144") && text.contains("100 IOPS, for a while 3000 IOPS"), "{text}");

    // Both are changed while it runs.
    wisp.run(&["modify", "a", "--cpu-credits", "standard"]).expect_code(0);
    let volume = instance["BlockDeviceMappings"][1]["Ebs"]["VolumeId"].as_str().unwrap();
    wisp.run(&["volume", "modify", volume, "--type", "gp3"]).expect_code(0);
    let shown = instances::json(&wisp, &["show", "a"]);
    assert_eq!(shown["Reservations"][0]["Instances"][0]["CreditSpecification"]["CpuCredits"], "standard");
    assert_eq!(shown["Limits"]["CPUSurplusCreditBalance"], 0.0);
    assert_eq!(shown["Limits"]["Volumes"][1]["Iops"], json!({"Baseline": 3000, "Peak": 3000}));

    // What is left is kept over a stop.
    wisp.run(&["stop", "--force", "a"]).expect_code(0);
    let limits = &instances::json(&wisp, &["show", "a"])["Limits"];
    assert!(limits["CPUCreditBalance"].is_number() && limits["Volumes"].is_null(), "{limits}");

    wisp.run(&[&launch[..], &["--name", "b", "--no-limits"]].concat()).expect_code(0);
    let limits = &instances::json(&wisp, &["show", "b"])["Limits"];
    assert_eq!(
        (&limits["Limited"], &limits["Ebs"], &limits["CPUCreditBalance"]),
        (&json!(false), &json!(null), &json!(null))
    );
    assert_eq!(limits["Volumes"][0]["Iops"], json!(null));
}
