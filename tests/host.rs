//! Commands that need no guest: the instance type catalog and the doctor.

mod common;

use common::Wisp;

#[test]
fn types_lists_catalog_in_ec2_format() {
    let outcome = Wisp::without_kvm().run(&["types", "t3.micro", "--output", "json"]).expect_code(0);
    let listing: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let micro = &listing["InstanceTypes"][0];
    assert_eq!(micro["InstanceType"], "t3.micro");
    assert_eq!(micro["VCpuInfo"]["DefaultVCpus"], 2);
    assert_eq!(micro["MemoryInfo"]["SizeInMiB"], 1024);
}

#[test]
fn doctor_exit_code_matches_report() {
    let outcome = Wisp::without_kvm().run(&["doctor", "--output", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let can_run = report["CanRunGuests"].as_bool().unwrap();
    assert_eq!(outcome.code, Some(i32::from(!can_run)));
    assert!(report["Findings"].as_array().unwrap().len() > 5);
}

#[test]
fn unusable_home_is_named() {
    let wisp = Wisp::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = wisp.command(&["run", "--", "true"]).env("WISP_HOME", file.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr.contains("cannot use wisp's data directory") && stderr.contains("WISP_HOME"), "{stderr}");
}

#[test]
fn metadata_defaults_are_kept_changed_and_reset() {
    let wisp = Wisp::without_kvm();
    let defaults = |words: &[&str]| {
        let outcome = wisp.run(&[&["metadata-defaults", "--output", "json"], words].concat()).expect_code(0);
        serde_json::from_slice::<serde_json::Value>(&outcome.stdout).unwrap()["AccountLevel"].clone()
    };
    assert_eq!(defaults(&[]), serde_json::json!({}));
    let required = serde_json::json!({"HttpEndpoint": "enabled", "HttpTokens": "required"});
    assert_eq!(defaults(&["--imds", "required"]), required);
    let with_hops = defaults(&["--metadata-options", "HttpPutResponseHopLimit=2"]);
    assert_eq!((&with_hops["HttpTokens"], &with_hops["HttpPutResponseHopLimit"]), (&"required".into(), &2.into()));
    assert_eq!(defaults(&[]), with_hops);
    assert_eq!(defaults(&["--reset"]), serde_json::json!({}));
    let refused = wisp.run(&["metadata-defaults", "--metadata-options", "HttpTokens=maybe"]).expect_code(2);
    assert!(refused.stderr.contains("HttpTokens"), "{}", refused.stderr);
}

#[test]
fn timeline_without_run_suggests_command() {
    let outcome = Wisp::without_kvm().run(&["timeline"]).expect_code(1);
    assert!(outcome.stderr.contains("wisp run"), "{}", outcome.stderr);
}
