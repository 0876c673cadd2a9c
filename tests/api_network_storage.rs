//! The API's actions of networks and storage, called by boto3, without guests. The scenarios are in
//! `tests/api/network_storage.py`.

mod common;

use std::path::Path;

use common::Wisp;

/// Runs a scenario against a server with a data directory of its own.
fn run(scenario: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/api-clients/bin/python");
    if !python.exists() {
        test_support::skip_without(test_support::Capability::ApiClients);
        return;
    }
    let script = root.join("tests/api/network_storage.py");
    let [python, script] = [&python, &script].map(|path| path.to_str().expect("UTF-8"));
    Wisp::without_kvm().run(&["serve", "--", python, script, scenario]).expect_code(0);
}

#[test]
fn security_groups_are_created_found_and_deleted() {
    run("groups");
}

#[test]
fn rules_are_authorized_changed_and_revoked() {
    run("rules");
}

#[test]
fn vpcs_and_subnets_are_created_found_and_deleted() {
    run("vpcs");
}

#[test]
fn addresses_are_allocated_and_released() {
    run("addresses");
}

#[test]
fn volumes_and_snapshots_are_created_modified_and_deleted() {
    run("volumes");
}
