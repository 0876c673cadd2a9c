//! The API's actions of launch templates, image aliases, gateways and route tables, called by boto3, without guests.
//! The scenarios are in `tests/api/templates_routes.py`.

mod common;

use common::{Wisp, api};

/// Runs a scenario against a server with a data directory of its own.
fn run(scenario: &str) {
    api::run(&Wisp::without_kvm(), "templates_routes.py", &[scenario, env!("CARGO_BIN_EXE_wisp")]);
}

#[test]
fn launch_templates_and_versions_are_created_found_and_deleted() {
    run("templates");
}

#[test]
fn image_aliases_are_parameters() {
    run("parameters");
}

#[test]
fn gateways_and_routes_are_created_found_and_deleted() {
    run("routes");
}
