//! The API's actions of networks and storage, called by boto3, without guests. The scenarios are in
//! `tests/api/network_storage.py`.

mod common;

use common::{Wisp, api};

/// Runs a scenario against a server with a data directory of its own.
fn run(scenario: &str) {
    api::run(&Wisp::without_kvm(), "network_storage.py", &[scenario]);
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
