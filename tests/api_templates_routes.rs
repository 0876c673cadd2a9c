//! The API's actions of launch templates, image aliases, gateways and route tables, called by boto3, without guests.
//! The scenarios are in `tests/api/templates_routes.py`.

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
    let script = root.join("tests/api/templates_routes.py");
    let [python, script] = [&python, &script].map(|path| path.to_str().expect("UTF-8"));
    let wisp = env!("CARGO_BIN_EXE_wisp");
    Wisp::without_kvm().run(&["serve", "--", python, script, scenario, wisp]).expect_code(0);
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
